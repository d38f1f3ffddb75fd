"""A page by Flask. `requirements.txt` says what it needs, the `Procfile` how it is served."""

from flask import Flask, request

VERSION = "Version one"
app = Flask(__name__)


@app.get("/")
def home():
    name = request.args.get("name", "stranger")
    return {"greeting": f"Hello, {name}.", "version": VERSION}


@app.get("/healthz")
def health():
    return "ok\n"
