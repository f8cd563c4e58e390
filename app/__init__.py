"""The Gradio app: inspect subsets, rankings and credit. Run `python -m app` from the repository's root; see README.md."""
