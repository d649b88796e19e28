"""The contact sheet and the page's pieces."""

import numpy as np

from spatialvla_ft.viz.sheets import FRAME, GAP, LABEL, contact_sheet


def test_contact_sheet_places_frames_and_the_principal_point():
    def flat(colour):
        return np.full((60, 120, 3), colour, np.uint8)

    rows = [(3, [(0, flat((200, 0, 0))), (5, flat((0, 200, 0)))]), (7, [(2, flat((0, 0, 200)))])]
    K = np.array([[90.0, 0, 30], [0, 90, 45], [0, 0, 1]])
    sheet = contact_sheet(rows, K)
    height = FRAME // 2
    assert sheet.shape == (2 * (LABEL + height) + GAP, 2 * FRAME + GAP, 3)
    assert sheet[LABEL + 5, 5].tolist() == [200, 0, 0]
    assert sheet[LABEL + 5, FRAME + GAP + 5].tolist() == [0, 200, 0]
    below = LABEL + height + GAP + LABEL
    assert sheet[below + 5, 5].tolist() == [0, 0, 200]
    assert sheet[below + 5, FRAME + GAP + 5].tolist() == [255, 255, 255]
    # A quarter from the left, three quarters down.
    x, y = FRAME // 4, LABEL + height * 3 // 4
    assert sheet[y, x].tolist() == [255, 255, 255]
    assert (contact_sheet(rows)[y, x] == [200, 0, 0]).all()
