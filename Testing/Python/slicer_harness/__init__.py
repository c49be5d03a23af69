"""3D Slicer without its desktop: real MRML (`slicer-core`), real Qt (PySide6, offscreen), strict stand-ins.

`start()` once a process makes `import qt, ctk, slicer` work as in Slicer, for a scripted module that keeps to
what the stand-ins know; what Slicer would refuse, or silently leave undone, raises here.

With the environment variable SEGMMREG_SLICER_PYTHON set to the folder of a real Slicer that holds its Python
package (`…/bin/Python`), its own ScriptedLoadableModule, parameterNodeWrapper and
i18n are used instead of ours.
"""

from slicer_harness.application import add_module_path, displays, open_module, process_until, start
from slicer_harness.pythonqt import slot_errors

__all__ = ["add_module_path", "displays", "open_module", "process_until", "slot_errors", "start"]
