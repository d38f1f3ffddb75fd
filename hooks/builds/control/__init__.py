"""Control's side of builds: it hands them out, and keeps what they give."""
