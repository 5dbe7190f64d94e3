"""The whole suite as one site: a home page, and a page for each app; they share one queue.

`python launch.py`, `python launch.py --list`, `python launch.py --only canny2image --port 7870`.
"""

import apps
from apps.web.serve import Environment, arguments, launch, make_suite


def main() -> None:
    """Parse the command line and serve."""
    parser = arguments("ControlLoop: every app on one site.")
    parser.add_argument("--list", action="store_true", help="print the apps' names and stop")
    parser.add_argument("--only", metavar="NAMES", help="serve these apps only (a,b,c)")
    options = parser.parse_args()
    if options.list:
        print("\n".join(apps.names()))
        return
    wanted = options.only.split(",") if options.only else apps.names()
    unknown = [name for name in wanted if name not in apps.names()]
    if unknown:
        parser.error(f"no app is called {unknown[0]!r}; there are: {', '.join(apps.names())}")
    environment = Environment.read()
    suite = make_suite(options.model, environment)
    from apps.web.site import build_site  # noqa: PLC0415 - --list and --help must not wait for gradio

    site = build_site([apps.find(name) for name in apps.names() if name in wanted], suite)
    first = next((one for one in apps.conditions() if one.name in wanted), None)
    launch(site, environment, options, suite=suite, first=first)


if __name__ == "__main__":
    main()
