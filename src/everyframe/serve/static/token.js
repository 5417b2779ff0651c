// What stands on the page when the server wants its token.

import { getJson, withParameters } from "./api.js";
import { $, el } from "./dom.js";

/** results: the list whose place the form takes. text: what the server said. */
export function askForToken(results, text) {
  if ($("token")) return;
  const field = el("input", { id: "token", type: "password", class: "plain-field", autocomplete: "off", required: true });
  const said = el("p", { role: "status" }, text);
  const send = async (event) => {
    event.preventDefault();
    try {
      // Answered with a cookie that scripts cannot read; the token itself is not kept.
      await fetch(withParameters("/", { token: field.value.trim() }), { credentials: "same-origin" });
      await getJson("/api/status");
      location.reload();
    } catch (error) {
      said.textContent = error.status === 401 ? "That is not the token of this server." : error.message;
      field.select();
    }
  };
  document.body.classList.add("locked");
  results.clear(
    el(
      "form",
      { class: "state token", onsubmit: send },
      el("h2", {}, "This archive asks for its token"),
      said,
      el("label", { htmlFor: "token", class: "hidden" }, "Token"),
      el("div", { class: "token-row" }, field, el("button", { type: "submit", class: "primary" }, "Open")),
    ),
  );
  field.focus();
}
