"""The Gradio app: look inside subsets, rankings and credit. `python -m app` from the repository's root."""
