"""What of a DICOM header is read, and what a file's own word on its pixels leads to."""

from __future__ import annotations

import numpy as np
import pytest
from ecg_files import group, twelve
from ecg_files import write_dicom as write_waveform
from tiny_media import load, write_dicom

from qoqmed.media import dicom, dicom_header, ecg

pydicom = pytest.importorskip("pydicom")
WHO = {"PatientName": "Doe^Jane", "PatientID": "4711", "PatientBirthDate": "19500101", "StudyDate": "20200102"}


def test_who_the_patient_is_stays_in_the_file(tmp_path):
    write_dicom(tmp_path / "a.dcm", np.ones((4, 4)), **WHO, InstitutionName="St. Elsewhere", AccessionNumber="99")
    assert pydicom.dcmread(tmp_path / "a.dcm").PatientName == "Doe^Jane"
    for stop in (True, False):
        held = dicom._read(tmp_path / "a.dcm", stop_before_pixels=stop)
        assert {element.keyword for element in held} <= set(dicom_header.FIELDS)
        assert not any(value in str(held) for value in (*WHO.values(), "Elsewhere", "99"))
    assert load(tmp_path, "a.dcm")


def test_the_list_names_known_fields_and_no_person():
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    for name in (*dicom_header.FIELDS, *dicom_header.WAVEFORM_FIELDS):
        assert tag_for_keyword(name) is not None, name
        assert dictionary_VR(tag_for_keyword(name)) not in ("PN", "DA", "DT"), name  # persons, dates
        assert tag_for_keyword(name) >> 16 != 0x0010  # the group of patients


def test_an_ecg_keeps_its_patient_to_itself(tmp_path, monkeypatch):
    path = tmp_path / "e.dcm"
    write_waveform(path, [group(twelve())])
    data = pydicom.dcmread(path)
    data.PatientName = "Doe^Jane"
    data.save_as(path)
    seen, read = [], pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *args, **more: seen.append(read(*args, **more)) or seen[-1])
    assert ecg.load(path).shape == (12, 2500)
    assert seen and all("PatientName" not in data for data in seen)


@pytest.mark.parametrize("tag", ["BurnedInAnnotation", "RecognizableVisualFeatures"])
def test_a_file_that_shows_who_it_is_of_is_warned_of(tmp_path, tag):
    write_dicom(tmp_path / "a.dcm", np.ones((4, 4)), **{tag: "YES"})
    write_dicom(tmp_path / "b.dcm", np.ones((4, 4)), **{tag: "NO"})
    with pytest.warns(UserWarning, match=f"a.dcm may show who the patient is: {tag} is YES") as said:
        load(tmp_path, "a.dcm")
        load(tmp_path, "b.dcm")
    assert len(said) == 1
