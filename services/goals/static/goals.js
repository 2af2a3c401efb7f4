// Says what has just happened, to those who hear the page as well, and puts the focus where the work goes on.
// The page is complete without it.

// A page out of the back/forward cache shows the goals of then and carries a key that is spent.
addEventListener("pageshow", ({ persisted }) => persisted && location.reload());

const OUTCOME = "goals.outcome";
const field = document.getElementById("goal_name");
const status = document.getElementById("outcome");
const rows = [...document.querySelectorAll("li")];

document.addEventListener("submit", ({ target, submitter }) => {
  const row = submitter?.closest("li");
  const done = row
    ? { verb: "Removed", name: row.querySelector("button span").textContent.trim(), row: rows.indexOf(row), page: location.search }
    : { verb: "Added", name: target.elements.goal_name.value.trim() };
  sessionStorage.setItem(OUTCOME, JSON.stringify(done));
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

  // After a removal: the row that moved up, not its button, so that a key held down cannot remove that one too. One on an
  // older page leads to the first page, whose rows are others.
  const row = done.page === location.search && rows[Math.min(done.row, rows.length - 1)];
  if (row) {
    row.tabIndex = -1;
    row.focus();
  } else {
    field.focus();
  }
}
