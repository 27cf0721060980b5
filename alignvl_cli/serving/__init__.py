"""The HTTP service: what is served (`catalog`), requests that arrive together answered together (`batching`,
`answers`), what is let in (`gate`), what is counted (`metrics`), the routes (`app`), and the process that listens
(`server`)."""
