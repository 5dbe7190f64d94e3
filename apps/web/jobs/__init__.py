"""From raw values of a page or an endpoint to checked requests, and their runs. Without Gradio."""
