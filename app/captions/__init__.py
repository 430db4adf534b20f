"""captions: users submit images, workers write captions for them.

A task is a row in ``caption_tasks``. It is run either by workers that poll the table (custody ``db``) or by RQ
workers (custody ``rq``); the row says which, and only that side may start it.
"""
