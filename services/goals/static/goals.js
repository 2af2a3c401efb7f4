// Announces what has just happened, also to users of screen readers, and moves the focus to where the work continues.
// The page is fully usable without this script.

// A page from the back/forward cache shows outdated goals and contains a key that has been used.
addEventListener("pageshow", ({ persisted }) => persisted && location.reload());

const OUTCOME = "goals.outcome";
const field = document.getElementById("goal_name");
const status = document.getElementById("outcome");
const rows = [...document.querySelectorAll("li")];

let byMouse = false;
addEventListener("click", ({ detail }) => { byMouse = detail > 0 }, true); // a click by keyboard has a detail of 0

document.addEventListener("submit", ({ target, submitter }) => {
  const row = submitter?.closest("li");
  const done = row
    ? { verb: "Removed", name: row.querySelector("bdi").textContent, row: rows.indexOf(row), page: location.search }
    : { verb: target.elements.row_version ? "Changed" : "Added", name: target.elements.goal_name.value.trim(), goal: location.pathname };
  sessionStorage.setItem(OUTCOME, JSON.stringify({ ...done, byMouse }));
});

const done = JSON.parse(sessionStorage.getItem(OUTCOME));
sessionStorage.removeItem(OUTCOME);

// Only a successful request is answered with a redirect; a refused one is answered in place.
const [arrival] = performance.getEntriesByType("navigation");
if (done && status && arrival.redirectCount > 0) {
  const name = document.createElement("bdi");
  name.textContent = done.name;
  // A live region announces only changes, and only after the screen reader has processed the page.
  addEventListener("load", () => setTimeout(() => status.append(`${done.verb} “`, name, "”"), 150));

  // The changed goal's row, or the row that moved up. Not its button, so that a key that is held down cannot remove it too.
  // A removal on an older page leads to the first page, which has different rows.
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
