"""The nine domains. Golden source: Table 5 of the paper, as printed."""

import re
from importlib import metadata

import pytest

from qoqmed.domains import catalogue
from qoqmed.reading import clashes, match_labels

NAMES = ("chest_xray", "mammography", "dermoscopy", "fundus", "pathology", "ultrasound", "ct", "mri", "ecg")
TABLE_5 = """
PTB-XL | 7 | Normal, Conduction Delay (CD), Hypertrophy (HYP), Myocardial Infarction (MI), \
Sinus Tachycardia/Bradycardia/Conduction (STTC), Atrial Fibrillation/Atrial Flutter (A. Fib/Aflutter), Other
Chapman-Shaoxing | 7 | Same as PTB-XL
Georgia | 7 | Same as PTB-XL
CPSC | 7 | Same as PTB-XL
CheXpert | 14 | Atelectasis, Cardiomegaly, Consolidation, Edema, Enlarged Cardiomediastinum, Fracture, \
Lung Lesion, Lung Opacity, Pleural Effusion, Pneumonia, Pneumothorax, Pleural Other, Support Devices, No Finding
MIMIC-CXR | 14 | Same as CheXpert
VinDr-CXR | 6 | Lung tumor, Pneumonia, Tuberculosis, COPD, Other diseases, No finding
COVID-19 | 4 | Normal, Bacterial Pneumonia, COVID-19, Viral Pneumonia
CoronaHack | 3 | Normal, Bacterial Pneumonia, Viral Pneumonia
VinDr-Mammo | 5 | BI-RAD 1-5
CBIS-DDSM | 6 | BI-RAD 0-5
CMMD | 2 | Benign, Malignant
ISIC-2020 | 2 | Malignant, Benign
HAM10000 | 5 | Melanoma (MEL), Nevus (NV), Basal Cell Carcinoma (BCC), \
Actinic Keratosis/Intraepithelial Carcinoma (AKIEC), Other (OTHER)
PAD-UFES-20 | 5 | Melanoma (MEL), Nevus (NV), Basal Cell Carcinoma (BCC), \
Actinic Keratosis/Intraepithelial Carcinoma (AKIEC), Other (OTHER)
Messidor-2 | 5 | None, Mild DR, Moderate DR, Severe DR, PDR
APTOS 2019 | 5 | No DR, Mild, Moderate, Severe, Proliferative DR
Jichi | 3 | SDR (simple diabetic retinopathy), PPDR (pre-proliferative diabetic retinopathy), \
PDR (proliferative diabetic retinopathy)
LNDb | 3 | nodule ≥ 3mm, nodule <3mm, non-nodule
INSPECT | 5 | No PE, Acute Subsegmental-only PE, Acute PE, Subsegmental-only PE, Chronic PE
KiTS23 | 2 | Benign, Malignant
Hemorrhage | 2 | No Hemorrhage, Has Hemorrhage
RSPECT | 3 | No PE, Chronic PE, Acute PE
BUSI | 3 | Normal, Malignant, Benign
COVID-BLUES | 2 | Has COVID, No COVID
COVID-US | 3 | Covid, Pneumonia, Normal
Brain Tumor | 4 | No Tumor, Pituitary Tumor, Glioma Tumor, Meningioma Tumor
Brain Tumor 2 | 2 | Yes, No (presence of tumors)
LC25000 | 5 | Colon adenocarcinomas, Benign colon, Lung adenocarcinomas, Lung squamous cell carcinomas, Benign lung
BCSS | 4 | Tumor, Stroma, Lymphocytic infiltrate, Necrosis/debris
"""  # as printed: data set, number of classes, classes
WRITTEN_OUT = {
    "BI-RAD 1-5": "BI-RAD 1, BI-RAD 2, BI-RAD 3, BI-RAD 4, BI-RAD 5",
    "BI-RAD 0-5": "BI-RAD 0, BI-RAD 1, BI-RAD 2, BI-RAD 3, BI-RAD 4, BI-RAD 5",
    "Yes, No (presence of tumors)": "Yes, No",
}


def domains():
    return [getattr(catalogue, name) for name in NAMES]


def test_the_thirty_data_sets_of_table_5_to_the_letter():
    printed = [tuple(cell.strip() for cell in line.split("|")) for line in TABLE_5.strip().splitlines()]
    of_name = {name: classes for name, _, classes in printed}
    expected = {
        name: tuple(re.split(", (?![^(]*[)])", WRITTEN_OUT.get(text, text)))
        for name, text in ((name, of_name.get(text.removeprefix("Same as "), text)) for name, text in of_name.items())
    }
    found = {name: labels for domain in domains() for name, labels in domain.datasets.items()}
    assert found == expected and len(found) == 30
    assert {name: len(labels) for name, labels in found.items()} == {name: int(count) for name, count, _ in printed}


def test_questions_fit_the_data_set():
    for domain in domains():
        for name, labelled in domain.sets.items():
            questions = domain.questions(name)
            assert len(set(questions)) == len(questions) >= 3
            assert labelled.multi == (questions == domain.several) or labelled.questions == questions
            assert all(question[-1] in ".?" for question in questions)
        assert domain.questions("a set of one's own") == domain.phrasings
    assert all("BI-RADS" in question for question in catalogue.mammography.questions("CBIS-DDSM"))


def test_frames_of_volumes_and_videos_are_the_papers_four():
    for domain in domains():
        moving = set(domain.modalities) & {"volume", "video"}
        assert domain.frames == (4 if moving else 0 if domain.modalities == ("ecg",) else 1)


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
    assert {name: one.region for name, one in sets.items() if one.region} == {
        "VinDr-CXR": "Vietnam",
        "VinDr-Mammo": "Vietnam",
        "PAD-UFES-20": "Brazil",
        "APTOS 2019": "India",
        "Hemorrhage": "Iraq",
        "BUSI": "Egypt",
    }
    assert sets["CheXpert"].multi and not sets["CMMD"].multi
    assert {name for name, one in sets.items() if one.ordinal} == (
        {"VinDr-Mammo", "CBIS-DDSM", "Messidor-2", "APTOS 2019", "Jichi"}
    )


def test_entry_points_lead_to_the_domains():
    points = {point.name: point for point in metadata.entry_points(group="qoqmed.domains")}
    assert set(NAMES) <= set(points)
    assert points["ecg"].load() is catalogue.ecg
