// Says what has just happened, to those who hear the page as well, and puts the focus where the work goes on.
// The page is complete without it.

// A page out of the back/forward cache shows the goals of then and carries a key that is spent.
addEventListener("pageshow", ({ persisted }) => persisted && location.reload());

const OUTCOME = "goals.outcome";
const field = document.getElementById("goal_name");
const status = document.getElementById("outcome");
const rows = [...document.querySelectorAll("li")];

let byMouse = false;
addEventListener("click", ({ detail }) => { byMouse = detail > 0 }, true); // a click by a key counts no presses

document.addEventListener("submit", ({ target, submitter }) => {
  const row = submitter?.closest("li");
  const done = row
    ? { verb: "Removed", name: row.querySelector("bdi").textContent, row: rows.indexOf(row), page: location.search }
    : { verb: target.elements.row_version ? "Changed" : "Added", name: target.elements.goal_name.value.trim(), goal: location.pathname };
  sessionStorage.setItem(OUTCOME, JSON.stringify({ ...done, byMouse }));
});

const done = JSON.parse(sessionStorage.getItem(OUTCOME));
sessionStorage.removeItem(OUTCOME);

// Only a request that was carried out is answered by a redirect; a refused one is answered in place.
const [arrival] = performance.getEntriesByType("navigation");
if (done && status && arrival.redirectCount > 0) {
  const name = document.createElement("bdi");
  name.textContent = done.name;
  // A live region speaks of changes only, and only once the screen reader has taken in the page.
  addEventListener("load", () => setTimeout(() => status.append(`${done.verb} “`, name, "”"), 150));

  // The changed goal's row, or the one that moved up; not its button, so that a key held down cannot remove that one too.
  // A removal on an older page leads to the first page, whose rows are others.
  const row = done.goal
    ? rows.find((row) => row.querySelector("a").pathname === done.goal)
    : done.page === location.search && rows[Math.min(done.row, rows.length - 1)];
  if (row) {
    row.tabIndex = -1;
    row.focus({ focusVisible: !done.byMouse }); // after a click, a ring looks like a selection
  } else {
    field.focus();
  }
}
