"""The nine domains. Golden source: Table 5 of the paper, typed in here a second time where it is short enough."""

from importlib import metadata

import pytest

from qoqmed.domains import catalogue
from qoqmed.reading import clashes, match_labels

NAMES = ("chest_xray", "mammography", "dermoscopy", "fundus", "pathology", "ultrasound", "ct", "mri", "ecg")
CLASSES = {  # "# Classes" of Table 5
    "PTB-XL": 7,
    "Chapman-Shaoxing": 7,
    "Georgia": 7,
    "CPSC": 7,
    "CheXpert": 14,
    "MIMIC-CXR": 14,
    "VinDr-CXR": 6,
    "COVID-19": 4,
    "CoronaHack": 3,
    "VinDr-Mammo": 5,
    "CBIS-DDSM": 6,
    "CMMD": 2,
    "ISIC-2020": 2,
    "HAM10000": 5,
    "PAD-UFES-20": 5,
    "Messidor-2": 5,
    "APTOS 2019": 5,
    "Jichi": 3,
    "LNDb": 3,
    "INSPECT": 5,
    "KiTS23": 2,
    "Hemorrhage": 2,
    "RSPECT": 3,
    "BUSI": 3,
    "COVID-BLUES": 2,
    "COVID-US": 3,
    "Brain Tumor": 4,
    "Brain Tumor 2": 2,
    "LC25000": 5,
    "BCSS": 4,
}


def domains():
    return [getattr(catalogue, name) for name in NAMES]


def test_thirty_data_sets_with_the_papers_numbers_of_classes():
    sizes = {name: len(labels) for domain in domains() for name, labels in domain.datasets.items()}
    assert sizes == CLASSES
    assert len(sizes) == 30


def test_some_spaces_to_the_letter():
    assert catalogue.ct.datasets["LNDb"] == ("nodule ≥ 3mm", "nodule <3mm", "non-nodule")
    assert catalogue.mammography.datasets["CBIS-DDSM"][0] == "BI-RAD 0"
    assert catalogue.fundus.datasets["APTOS 2019"] == ("No DR", "Mild", "Moderate", "Severe", "Proliferative DR")
    assert catalogue.ecg.datasets["Georgia"] == catalogue.ecg.datasets["PTB-XL"]
    assert catalogue.ultrasound.datasets["BUSI"] == ("Normal", "Malignant", "Benign")


@pytest.mark.parametrize("name", NAMES)
def test_every_label_can_be_answered(name):
    for space in getattr(catalogue, name).datasets.values():
        assert clashes(space) == ()
        assert match_labels(", ".join(space), space) == (space, ())
        for label in space:
            assert match_labels(label, space) == ((label,), ())


@pytest.mark.parametrize("name", NAMES)
def test_a_domain_keeps_its_contract(name):
    domain = getattr(catalogue, name)
    assert domain.name == name and domain.title
    assert set(domain.modalities) <= {"image", "volume", "video", "ecg"} and domain.modalities
    assert len(set(domain.phrasings)) == len(domain.phrasings) >= 3


def test_flags_of_the_paper():
    assert {domain.name for domain in domains() if domain.understudied} == {"mammography", "ecg", "ultrasound"}
    sets = {name: labelled for domain in domains() for name, labelled in domain.sets.items()}
    assert {name for name, one in sets.items() if one.novel} == {"COVID-19", "COVID-BLUES", "COVID-US"}
    assert sets["VinDr-CXR"].region == "Vietnam" and sets["CheXpert"].region == ""
    assert sets["CheXpert"].multi and not sets["CMMD"].multi
    assert {name for name, one in sets.items() if one.ordinal} == (
        {"VinDr-Mammo", "CBIS-DDSM", "Messidor-2", "APTOS 2019", "Jichi"}
    )


def test_entry_points_lead_to_the_domains():
    points = {point.name: point for point in metadata.entry_points(group="qoqmed.domains")}
    assert set(NAMES) <= set(points)
    assert points["ecg"].load() is catalogue.ecg
