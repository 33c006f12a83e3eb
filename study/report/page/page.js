const report = document.getElementById("report"), compare = document.getElementById("compare");
const picker = document.getElementById("kernel"), together = document.getElementById("together");
const compared = document.getElementById("compared"), nav = document.querySelector("nav");
let place = 0; // how far the report was scrolled when the comparison was opened

// Panes of different length scroll by the same share of their way.
function link(panes) {
  const scrolls = [...panes.querySelectorAll(".scroll")];
  let leader = null;
  for (const pane of scrolls) {
    for (const event of ["pointerenter", "wheel", "touchstart", "focusin", "keydown"])
      pane.addEventListener(event, () => { leader = pane; }, { passive: true });
    pane.addEventListener("scroll", () => {
      if (!together.checked || (leader && leader !== pane)) return;
      const share = pane.scrollTop / Math.max(1, pane.scrollHeight - pane.clientHeight);
      for (const other of scrolls)
        if (other !== pane) other.scrollTop = share * (other.scrollHeight - other.clientHeight);
    });
  }
}

function show() {
  const kernel = location.hash.match(/^#compare=(\w+)$/)?.[1];
  const sources = kernel && document.querySelector(`#sources-${kernel} .panes`);
  const was = !compare.hidden;
  if (sources && !was) place = scrollY;
  compare.hidden = !sources;
  report.hidden = nav.hidden = Boolean(sources);
  if (!sources) {
    const target = document.getElementById(location.hash.slice(1));
    if (was && target && target !== report) target.scrollIntoView();
    else if (was) scrollTo(0, place);
    return;
  }
  picker.value = kernel;
  compared.replaceChildren(sources.cloneNode(true));
  link(compared);
  scrollTo(0, 0);
  if (!was) compare.querySelector("h1").focus();
}

picker.addEventListener("change", () => { location.hash = `compare=${picker.value}`; });
addEventListener("hashchange", show);
document.querySelectorAll(".sources .panes").forEach(link);
show();
