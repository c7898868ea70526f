// Whatever scrolls sideways can be scrolled by the keyboard, too.
function reach() {
  const parts = ".md-typeset__scrollwrap, .md-typeset pre > code, .md-typeset pre, .highlight-ipynb";
  for (const part of document.querySelectorAll(parts)) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
  }
}
window.addEventListener("load", reach);
window.addEventListener("resize", reach);
