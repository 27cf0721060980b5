"""VIEWS: values in, rich renderables and Markdown out; only the live displays draw, on a console given to them."""
