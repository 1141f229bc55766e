"""Studies of subjects, prompts and methods, judged by models and by people.

`study` reads what is to be compared, `runner` makes and judges it in a `folder`, cell by cell (`cells`), and `report`
tells what was found. `metrics` are the judges (`clip`, `dino`, `faces`, `realism`, `faceworld`), `statistics` their
intervals, and `pairs` a page on which people compare pictures. `rendering` fills in the `templates` of both. `scoring`
has single pictures judged while they are drawn.
"""
