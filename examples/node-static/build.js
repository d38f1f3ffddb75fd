// Turns each page of pages/ into one of dist/. gitd publishes dist, and nothing else.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const { marked } = require("marked");

const page = (title, body) => `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>${title}</title>
<body style="font: 1.1rem/1.6 system-ui, sans-serif; max-width: 38rem; margin: 4rem auto">
${body}`;

fs.mkdirSync("dist", { recursive: true });
for (const file of fs.readdirSync("pages")) {
  const text = fs.readFileSync(path.join("pages", file), "utf8");
  const [, title] = /^# (.*)$/m.exec(text);
  const name = `${path.basename(file, ".md")}.html`;
  fs.writeFileSync(path.join("dist", name), page(title, marked(text)));
  console.log(`${file} -> dist/${name}`);
}
