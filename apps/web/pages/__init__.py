"""The pages, in Gradio."""
