"""Pages that people look at: one HTML file of a run (`vitp report`), or of several (`vitp compare`).

`stored` finds an evaluation again from its folder alone; `figures` makes numbers of its rows, `masks` of the stored
scores and masks; `gallery` chooses images and `pictures` draws them; `charts` describes charts, `page` writes the file.
"""
