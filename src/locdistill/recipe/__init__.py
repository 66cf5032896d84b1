"""A whole run as data: schema, terms, defaults, catalogue, run folder."""
