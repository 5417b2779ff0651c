// The operations of /openapi.json as a page; those that only read can be tried.

const place = document.getElementById("operations");

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

function kindOf(schema, document_) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.filter((each) => each.type !== "null").map((each) => kindOf(each, document_)).join(" or ");
  if (schema.type === "array") return `list of ${kindOf(schema.items, document_)}`;
  if (schema.enum) return schema.enum.join(", ");
  return schema.format === "binary" ? "file" : schema.type || "";
}

function limits(schema) {
  const inner = (schema.anyOf || []).find((each) => each.type !== "null") || schema;
  const parts = [];
  if (inner.minimum !== undefined && inner.maximum !== undefined) parts.push(`${inner.minimum} to ${inner.maximum}`);
  if (schema.default !== undefined && schema.default !== null && schema.default !== "") parts.push(`default ${schema.default}`);
  return parts.join("; ");
}

function rows(entries) {
  return element("table", {}, element("tbody", {}, ...entries.map(([name, ...cells]) =>
    element("tr", {}, element("th", { scope: "row" }, element("code", { textContent: name })), ...cells.map((cell) => element("td", { textContent: cell }))))));
}

function properties(reference, document_) {
  const schema = document_.components.schemas[reference.split("/").pop()];
  return Object.entries(schema.properties || {}).map(([name, each]) => [name, kindOf(each, document_), each.description || ""]);
}

function parts(operation, document_) {
  const found = [];
  if (operation.parameters?.length) {
    found.push(element("h3", { textContent: "Parameters" }), rows(operation.parameters.map((each) =>
      [each.name, kindOf(each.schema, document_), [each.description, limits(each.schema)].filter(Boolean).join(" ")])));
  }
  for (const [type, content] of Object.entries(operation.requestBody?.content || {})) {
    found.push(element("h3", { textContent: `Body, ${type}` }), rows(Object.entries(content.schema.properties || {}).map(([name, each]) => [name, kindOf(each, document_)])));
  }
  for (const [code, answer] of Object.entries(operation.responses)) {
    if (Number(code) >= 300) continue;
    const schema = answer.content?.["application/json"]?.schema;
    const types = Object.keys(answer.content || {}).join(", ");
    found.push(element("h3", { textContent: `${code} ${types}` }));
    if (schema?.$ref) found.push(rows(properties(schema.$ref, document_)));
  }
  const refusals = Object.keys(operation.responses).filter((code) => Number(code) >= 400);
  if (refusals.length) found.push(element("h3", { textContent: `May also answer ${refusals.join(", ")}` }));
  return found;
}

function tryIt(path, operation) {
  const first = operation.parameters?.some((each) => each.name === "q" && each.in === "query");
  const input = element("input", { value: path + (first ? "?q=a+red+circle" : ""), spellcheck: false });
  input.setAttribute("aria-label", `Address to try, ${path}`);
  const output = element("pre", { hidden: true, tabIndex: 0 });
  output.setAttribute("aria-label", "Answer");
  const form = element("form", {}, input, element("button", { type: "submit", className: "primary", textContent: "Try" }));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    output.hidden = false;
    try {
      const address = new URL(input.value, location.origin);
      if (address.origin !== location.origin) throw new Error("only this server can be asked");
      const answer = await fetch(address);
      const json = (answer.headers.get("content-type") || "").includes("json");
      const text = json ? JSON.stringify(await answer.json(), null, 2) : `${answer.headers.get("content-type")}, ${(await answer.blob()).size} bytes`;
      output.textContent = `${answer.status}\n${text}`;
    } catch (error) {
      output.textContent = String(error.message || error);
    }
  });
  return [form, output];
}

function show(document_) {
  const groups = new Map();
  for (const [path, methods] of Object.entries(document_.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      if (method === "head") continue;
      const group = (operation.tags || ["other"])[0];
      if (!groups.has(group)) groups.set(group, []);
      const reads = method === "get" && !path.endsWith("/events");
      groups.get(group).push(element("details", { className: "operation" },
        element("summary", {},
          element("span", { className: "method", textContent: method.toUpperCase() }),
          element("span", { className: "path", textContent: path }),
          element("span", { className: "about", textContent: operation.description || operation.summary || "" })),
        element("div", { className: "body" }, ...parts(operation, document_), ...(reads ? tryIt(path, operation) : []))));
    }
  }
  place.replaceChildren(...[...groups].flatMap(([name, operations]) => [element("h2", { textContent: name }), ...operations]));
}

try {
  const answer = await fetch("/openapi.json");
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.detail);
  show(body);
} catch (error) {
  place.replaceChildren(element("p", { className: "muted", textContent: `openapi.json cannot be read: ${error.message}` }));
}
