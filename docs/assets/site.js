// Whatever scrolls sideways can be scrolled by the keyboard, too.
function reach() {
  for (const part of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code")) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
  }
}
window.addEventListener("load", reach);
window.addEventListener("resize", reach);
