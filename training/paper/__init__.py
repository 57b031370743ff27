"""The paper's Tables I and II and Figures 2 to 5, from one command: ``nvisa-train paper``.

A table is a list of `plan.Job`s: a data set, a method, a seed. `runs` carries each out and keeps a JSON file
of it, `render` makes Markdown of the files that are there, and `figures` pictures of them and of the models.
"""
