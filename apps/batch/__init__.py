"""Generates an image for every picture of a folder, from the shell: `python -m apps.batch --help`.

A package, as every module of apps/ is an app with a page.
"""
