"""`slicer.dicomDatabase`, a ctkDICOMDatabase, as far as the module asks it; folders stand for series.

Names of fields are the columns of CTK's tables; of others the real one only writes into its log.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_FIELDS = {
    "Patients": ("UID", "PatientsName", "PatientID", "PatientsBirthDate", "PatientsSex"),
    "Studies": ("StudyInstanceUID", "StudyDate", "StudyTime", "ModalitiesInStudy", "StudyDescription"),
    "Series": ("SeriesInstanceUID", "SeriesNumber", "SeriesDate", "SeriesDescription", "Modality"),
}


class DicomDatabase:
    """Read only; `add` is of the tests."""

    def __init__(self) -> None:
        object.__setattr__(self, "_open", True)
        object.__setattr__(self, "_series", [])
        object.__setattr__(self, "_by_uid", {})

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"ctkDICOMDatabase.{name}: creating new attributes is not allowed")

    def add(self, folder: Path | None, *, patient: str, uid: str, description: str, kind: str = "MR") -> None:
        """A series whose files are those in a folder, None for a server; each patient has one study."""
        fields = {"SeriesDescription": description, "Modality": kind, "SeriesInstanceUID": uid}
        self._series.append((patient, f"study of {patient}", fields, folder))
        self._by_uid[uid] = self._series[-1]

    def close(self) -> None:
        """As `closeDatabase`."""
        object.__setattr__(self, "_open", False)

    @property
    def isOpen(self) -> bool:
        return self._open

    def patients(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(f"uid of {patient}" for patient, *_ in self._series))

    def studiesForPatient(self, patient: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s for p, s, *_ in self._series if f"uid of {p}" == patient))

    def seriesForStudy(self, study: str) -> tuple[str, ...]:
        return tuple(fields["SeriesInstanceUID"] for _, s, fields, _ in self._series if s == study)

    def filesForSeries(self, series: str, hits: int = -1) -> tuple[str, ...]:
        _patient, _study, _fields, folder = self._by_uid[series]
        if folder is None:
            return ("",)  # it has an address, but no name of a file
        files = [str(path) for path in sorted(folder.rglob("*")) if path.is_file()]
        return tuple(files if hits < 0 else files[:hits])

    def fieldForPatient(self, field: str, patient: str) -> str:
        _check("Patients", field)
        return patient.removeprefix("uid of ") if field == "PatientID" else ""

    def fieldForStudy(self, field: str, study: str) -> str:
        _check("Studies", field)
        return {"StudyDescription": study, "StudyDate": "2026-02-03"}.get(field, "")

    def fieldForSeries(self, field: str, series: str) -> str:
        _check("Series", field)
        return self._by_uid[series][2].get(field, "")


def _check(table: str, field: str) -> None:
    if field not in _FIELDS[table]:
        raise ValueError(f"The table {table} has no column {field!r}")
