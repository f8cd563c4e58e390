"""The front door for notebooks: from `import fgrpo` to a drawn group in five lines."""
