"""`partita watch`: a run as one picture in the browser, live or from a recording. Root side."""
