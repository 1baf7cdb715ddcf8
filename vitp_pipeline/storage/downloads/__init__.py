"""Files by name: weights on the Hugging Face Hub or behind an https address become local files.

`names` parses such a name, `fetch` gives its file: from the cache where it was fetched before, else through `hub` or
`web`. `cache` remembers what every name has held (its SHA-256) and keeps files that were converted. Begin with `fetch`.
"""
