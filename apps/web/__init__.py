"""The site that shows the apps."""

from apps.web.no_stubs import import_gradio_without_stubs

import_gradio_without_stubs()  # before any of these modules imports it
