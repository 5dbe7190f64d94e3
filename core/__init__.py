"""The shared middle: records, pictures, sampling, guidance, scoring and the one pipeline.

Imports nothing of ours from outside this folder and never gradio; importing it does no work.
"""
