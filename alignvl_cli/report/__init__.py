"""VIEWS: values in, rich renderables and Markdown out; the live displays alone draw, on a console that they are given."""
