"""What a page or an endpoint asks for, and the runs that answer it. Knows no Gradio."""
