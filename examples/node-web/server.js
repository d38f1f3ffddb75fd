// A clock that tells the time by Server-Sent Events: one page, one stream, one health check.
// Node's standard library only. It listens where $PORT says.
"use strict";

const http = require("node:http");

const VERSION = "Version one";
const PAGE = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Clock</title>
<body style="font: 1.25rem/1.6 system-ui, sans-serif; max-width: 32rem; margin: 4rem auto">
<h1 id="time">…</h1>
<p>${VERSION}, served by Node's standard library.</p>
<script>
  const clock = new EventSource("/time");
  clock.onmessage = (event) => { document.getElementById("time").textContent = event.data; };
</script>
`;

const streams = new Set();

function stream(response) {
  response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
  const tick = () => response.write(`data: ${new Date().toISOString().slice(11, 19)} UTC\n\n`);
  const timer = setInterval(tick, 1000);
  tick();
  streams.add(response);
  response.on("close", () => {
    clearInterval(timer);
    streams.delete(response);
  });
}

const server = http.createServer((request, response) => {
  const answer = (status, type, text) => {
    response.writeHead(status, { "Content-Type": type, "Content-Length": Buffer.byteLength(text) });
    response.end(request.method === "HEAD" ? undefined : text);
  };
  if (request.url === "/") answer(200, "text/html; charset=utf-8", PAGE);
  else if (request.url === "/time") stream(response);
  else if (request.url === "/version") answer(200, "text/plain", `${VERSION}\n`);
  else if (request.url === "/healthz") answer(200, "text/plain", "ok\n");
  else answer(404, "text/plain", "There is nothing at this address.\n");
});

process.on("SIGTERM", () => {
  server.close(() => process.exit(0));
  for (const response of streams) response.end();
  server.closeIdleConnections();
});

server.listen(Number(process.env.PORT), "127.0.0.1", () => {
  console.log(`${VERSION} listens on port ${server.address().port}`);
});
