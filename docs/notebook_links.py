"""Links of notebooks, which mkdocs-jupyter leaves as they are: files, where the site has pages."""

import re

_LINK = re.compile(r'href="([^":#]+)\.(?:ipynb|md)(#[^"]*)?"')


def on_page_content(html, page, **kwargs):
    """Return a notebook's HTML with links from its page to those of other files."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    return _LINK.sub(lambda link: f'href="../{link[1]}/{link[2] or ""}"', html)
