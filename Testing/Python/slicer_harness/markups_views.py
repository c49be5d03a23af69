"""Placing a control point with the mouse, step by step as Slicer's vtkSlicerMarkupsWidget does it.

The steps matter: who hears that a point has its place hears it in the middle of them; afterwards Slicer ends
the place mode, whatever was begun meanwhile.
"""

from __future__ import annotations

from typing import Any


def click(slicer: Any, world: Any) -> Any:
    """Click at this point of the world, RAS mm; the point list that got it.

    Raises:
        AssertionError: if Slicer would place nothing.
    """
    scene = slicer.mrmlScene
    selection = scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    interaction = scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
    assert interaction.GetCurrentInteractionMode() == interaction.Place, "Slicer is not in place mode"
    node = scene.GetNodeByID(selection.GetActivePlaceNodeID() or "")
    assert node is not None, "there is no list to place a point in"
    node.AddControlPointWorld([float(c) for c in world])
    if not interaction.GetPlaceModePersistence():
        interaction.SetCurrentInteractionMode(interaction.ViewTransform)
    return node
