"""Draw the pages that people look at: one HTML file of a run (`vitp report`), or of several (`vitp compare`).

Enters: an evaluation's folder, found again by `loaded_evaluation`. Leaves: one HTML file. Start with `report`;
`figures` makes numbers of the rows, `mask_statistics` of the stored scores and masks; `gallery` chooses
images and `thumbnails` draws them; `charts` describes charts, `page` writes the file.
"""
