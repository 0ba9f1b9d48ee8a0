"""Miniature data sets in the layouts in which they were published, a maker for each shipped spec.

A maker fills a folder and returns what a build of it has to give: labels by the row's id, and the rows left out by
reason, both written by hand from the data set's documentation.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from dataclasses import dataclass, field

import numpy as np
from ecg_files import twelve, write_record
from PIL import Image
from tiny_media import write_dicom, write_nifti, write_video

CD, HYP, MI, OTHER = "Conduction Delay (CD)", "Hypertrophy (HYP)", "Myocardial Infarction (MI)", "Other"
STTC = "Sinus Tachycardia/Bradycardia/Conduction (STTC)"
AFIB = "Atrial Fibrillation/Atrial Flutter (A. Fib/Aflutter)"
AKIEC = "Actinic Keratosis/Intraepithelial Carcinoma (AKIEC)"


@dataclass(frozen=True)
class Expected:
    """labels: id without the spec's name -> labels. left_out: reason -> rows. splits: id -> split, where published."""

    labels: dict
    left_out: dict = field(default_factory=dict)
    splits: dict = field(default_factory=dict)
    patients: int | None = None  # number of them, where the set has ids


def own(path):
    """A random stream of the file's own: no two files of a set have the same content, as in life."""
    return np.random.default_rng(zlib.crc32("/".join(path.parts[-3:]).encode()))


def picture(path, side=32, kind="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(own(path).integers(0, 255, (side, side), dtype=np.uint8)).convert(kind).save(path)


def mask(path, box=None, side=32):
    array = np.zeros((side, side), np.uint8)
    if box:
        array[box[1] : box[3], box[0] : box[2]] = 255
    Image.fromarray(array).save(path)


def table(path, text, **columns):
    """Lines of a CSV as they stand in the text; .gz is gzipped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "\n".join(line.strip() for line in text.strip().splitlines()) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content)


def rows_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def volume(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, own(path).integers(-500, 500, (8, 8, 6)))


def record(folder, name, dx="", signals=True, seconds=2):
    folder.mkdir(parents=True, exist_ok=True)
    beats = twelve(seconds)
    write_record(folder, beats + own(folder / name).normal(0, 0.02, beats.shape), name=name)
    if dx:
        with (folder / f"{name}.hea").open("a") as file:
            file.write(f"# Age: 60\n# Sex: Male\n# Dx: {dx}\n# Rx: Unknown\n")
    if not signals:
        (folder / f"{name}.dat").unlink()


def headers(folder, place, prefix):
    """The four kinds of header that every challenge set has."""
    record(folder / place, f"{prefix}1", "426783006")
    record(folder / place, f"{prefix}2", "426783006,164889003,59118001")
    record(folder / place, f"{prefix}3", "164873001,429622005,164865005")
    record(folder / place, f"{prefix}4", "426177001,17338001")
    record(folder / place, f"{prefix}5")
    record(folder / place, f"{prefix}6", "164890007", signals=False)
    labels = {"1": ["Normal"], "2": [CD, AFIB], "3": [HYP, MI, STTC], "4": [OTHER]}
    left = {"no code in 'dx' that counts": 1, "no file for its ecg": 1}
    return Expected({f"{prefix}{key}": value for key, value in labels.items()}, left)


def chapman(folder):
    return headers(folder, "WFDBRecords/01/010", "JS0000")


def georgia(folder):
    return headers(folder, "georgia/g1", "E0000")


def cpsc(folder):
    return headers(folder, "cpsc_2018/g1", "A000")


def ptb_xl(folder):
    codes = {
        1: "{'NORM': 100.0, 'SR': 0.0}",
        2: "{'IMI': 35.0, 'CLBBB': 100.0, 'SR': 0.0}",
        3: "{'LVH': 50.0, 'STD_': 0.0, 'AFIB': 0.0}",
        4: "{'NORM': 80.0, 'SBRAD': 0.0}",
        5: "{'SR': 0.0}",
        6: "{'NDT': 100.0, 'PVC': 100.0}",
    }
    lines = [
        {
            "ecg_id": key, "patient_id": f"{15700 + key // 2}.0", "age": 56.0, "scp_codes": text,
            "strat_fold": {1: 3, 2: 9, 3: 9, 4: 10, 5: 1, 6: 1}[key],
            "filename_lr": f"records100/00000/{key:05}_lr", "filename_hr": f"records500/00000/{key:05}_hr",
        }
        for key, text in codes.items()
    ]  # fmt: skip
    rows_table(folder / "ptbxl_database.csv", lines)
    table(
        folder / "scp_statements.csv",
        """,description,diagnostic,form,rhythm,diagnostic_class
        NORM,normal ECG,1.0,,,NORM
        IMI,inferior myocardial infarction,1.0,,,MI
        CLBBB,complete left bundle branch block,1.0,,,CD
        LVH,left ventricular hypertrophy,1.0,,,HYP
        NDT,non-diagnostic T abnormalities,1.0,1.0,,STTC
        STD_,non-specific ST depression,,1.0,,
        PVC,ventricular premature complex,,1.0,,
        AFIB,atrial fibrillation,,,1.0,
        SBRAD,sinus bradycardia,,,1.0,
        SR,sinus rhythm,,,1.0,""",
    )
    for key in codes:
        record(folder / "records500/00000", f"{key:05}_hr")
        record(folder / "records100/00000", f"{key:05}_lr")
    labels = {"1": ["Normal"], "2": [CD, MI], "3": [HYP, STTC, AFIB], "4": [OTHER], "6": [STTC, OTHER]}
    splits = {"1": "train", "2": "valid", "3": "valid", "4": "test", "6": "train"}
    return Expected(labels, {"no code in 'scp_codes' that counts": 1}, splits, 4)


CHEXPERT = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
    "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)


def chexpert(folder):
    start = "CheXpert-v1.0-small"
    table(
        folder / "train.csv",
        f"""Path,Sex,Age,Frontal/Lateral,AP/PA,{CHEXPERT}
        {start}/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0
        {start}/train/patient00002/study1/view1_frontal.jpg,Female,87,Frontal,AP,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,
        {start}/train/patient00002/study2/view2_lateral.jpg,Female,87,Lateral,,,,-1.0,,,,,,,,,,,
        {start}/train/patient00003/study1/view1_frontal.jpg,Male,41,Frontal,AP,,,,,,1.0,,,,,1.0,,,
        {start}/train/patient00004/study1/view1_frontal.jpg,Male,41,Frontal,AP,1.0,,,,,,,,,,,,,""",
    )
    table(
        folder / "valid.csv",
        f"""Path,Sex,Age,Frontal/Lateral,AP/PA,{CHEXPERT}
        {start}/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,0.0,1.0,1.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0""",
    )
    for name in ("train/patient00001", "train/patient00002", "train/patient00003", "valid/patient64541"):
        picture(folder / name / "study1/view1_frontal.jpg")
    picture(folder / "train/patient00002/study2/view2_lateral.jpg")
    end = "study1/view1_frontal.jpg"
    labels = {
        f"train/patient00001/{end}": ["Support Devices", "No Finding"],
        f"train/patient00002/{end}": ["Fracture", "Lung Opacity"],
        f"train/patient00003/{end}": ["Edema", "Pleural Effusion"],
        f"valid/patient64541/{end}": ["Cardiomegaly", "Enlarged Cardiomediastinum", "Lung Opacity"],
    }
    return Expected(labels, {"no label is positive": 1, "no file for its image": 1}, patients=4)


def mimic_cxr(folder):
    ids = {"d1": (10000032, 50414267), "d2": (10000032, 53189527), "d3": (11000001, 50000001), "d4": (12000001, 5)}
    split = {"d1": "train", "d2": "train", "d3": "validate", "d4": "test"}
    lines = [f"{d},{s},{t},{'LATERAL' if d == 'd2' else 'PA'}" for d, (s, t) in ids.items()]
    table(folder / "mimic-cxr-2.0.0-metadata.csv.gz", "\n".join(["dicom_id,subject_id,study_id,ViewPosition", *lines]))
    lines = [f"{d},{t},{s},{split[d]}" for d, (s, t) in ids.items()]
    table(folder / "mimic-cxr-2.0.0-split.csv.gz", "\n".join(["dicom_id,study_id,subject_id,split", *lines]))
    names = "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,"
    names += "Lung Lesion,Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
    table(
        folder / "mimic-cxr-2.0.0-chexpert.csv.gz",
        f"""{names}
        10000032,50414267,,,,,,,,,1.0,,,,,
        10000032,53189527,1.0,,,,,,,,,-1.0,,,,
        11000001,50000001,,1.0,,0.0,,,,,,,,,,1.0""",
    )
    for d, (s, t) in ids.items():
        picture(folder / f"files/p{str(s)[:2]}/p{s}/s{t}/{d}.jpg", kind="L")
    labels = {"d1": ["No Finding"], "d2": ["Atelectasis"], "d3": ["Cardiomegaly", "Support Devices"]}
    left = {"no row of mimic-cxr-2.0.0-chexpert.csv.gz belongs to it": 1}
    return Expected(labels, left, {"d1": "train", "d2": "train", "d3": "valid"}, 2)


def vindr_cxr(folder):
    table(
        folder / "annotations/image_labels_train.csv",
        """image_id,rad_id,Cardiomegaly,COPD,Lung tumor,Pneumonia,Tuberculosis,Other diseases,No finding
        a1,R1,1,0,0,1,0,0,0
        a1,R2,0,0,0,1,1,0,0
        a1,R3,0,0,0,0,0,1,0
        a2,R1,0,0,0,0,0,0,1
        a2,R2,0,0,0,0,0,0,1
        a2,R3,0,0,0,0,0,0,1
        a3,R1,0,1,0,0,0,0,0
        a3,R2,0,0,1,0,0,0,0
        a3,R3,0,0,0,0,1,0,0
        a4,R1,0,1,0,0,0,0,0
        a4,R2,0,1,0,0,0,0,0
        a4,R3,0,1,0,0,0,0,0""",
    )
    table(
        folder / "annotations/image_labels_test.csv",
        """image_id,Cardiomegaly,COPD,Lung tumor,Pneumonia,Tuberculosis,Other disease,No finding
        b1,0,0,0,0,0,1,0""",
    )
    (folder / "train").mkdir()
    (folder / "test").mkdir()
    for name in ("train/a1", "train/a2", "train/a3", "train/a4", "test/b1"):
        write_dicom(folder / f"{name}.dicom", own(folder / name).integers(0, 1000, (32, 32)))
    labels = {"a1": ["Pneumonia"], "a2": ["No finding"], "a4": ["COPD"], "b1": ["Other diseases"]}
    return Expected(labels, {"its readers agree on no label": 1}, {"b1": "test"})


def covid_19(folder):
    table(
        folder / "metadata.csv",
        """patientid,offset,finding,view,modality,folder,filename
        2,0,Pneumonia/Viral/COVID-19,PA,X-ray,images,c.jpg
        3,0,Pneumonia/Viral/SARS,PA,X-ray,images,s.jpg
        4,0,Pneumonia/Bacterial/Streptococcus,AP,X-ray,images,b.jpg
        5,0,No Finding,PA,X-ray,images,n.jpg
        6,0,Tuberculosis,PA,X-ray,images,t.jpg
        7,0,Pneumonia/Viral/COVID-19,Axial,CT,volumes,x.nii.gz
        8,0,Pneumonia/Viral/COVID-19,L,X-ray,images,l.jpg""",
    )
    for name in "csbntl":
        picture(folder / f"images/{name}.jpg")
    labels = {"c": ["COVID-19"], "s": ["Viral Pneumonia"], "b": ["Bacterial Pneumonia"], "n": ["Normal"]}
    left = {"no rule of the spec gives it a label": 1, "no X-ray": 1, "a view that is not asked for": 1}
    return Expected({f"{key}.jpg": value for key, value in labels.items()}, left, patients=4)


def isic_2020(folder):
    table(
        folder / "train.csv",
        """image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target
        ISIC_1,IP_1,male,45.0,head/neck,unknown,benign,0
        ISIC_2,IP_1,male,45.0,torso,melanoma,malignant,1
        ISIC_3,IP_2,female,50.0,torso,nevus,benign,0
        ISIC_4,,female,50.0,torso,nevus,benign,0""",
    )
    for key in (1, 2, 3, 4):
        picture(folder / f"train/ISIC_{key}.jpg")
    return Expected(
        {"ISIC_1": ["Benign"], "ISIC_2": ["Malignant"], "ISIC_3": ["Benign"], "ISIC_4": ["Benign"]}, patients=3
    )


def ham10000(folder):
    table(
        folder / "HAM10000_metadata.csv",
        """lesion_id,image_id,dx,dx_type,age,sex,localization
        HAM_1,ISIC_1,bkl,histo,80.0,male,scalp
        HAM_1,ISIC_2,bkl,histo,80.0,male,scalp
        HAM_2,ISIC_3,nv,histo,80.0,male,scalp
        HAM_3,ISIC_4,mel,histo,,male,scalp
        HAM_4,ISIC_5,akiec,histo,80.0,male,scalp
        HAM_5,ISIC_6,unheard,histo,80.0,male,scalp""",
    )
    for key in range(1, 7):
        picture(folder / f"HAM10000_images_part_{1 if key < 4 else 2}/ISIC_{key}.jpg")
    masks = folder / "HAM10000_segmentations_lesion_tschandl"
    masks.mkdir()
    mask(masks / "ISIC_1_segmentation.png", (4, 8, 20, 24))
    labels = {"ISIC_1": ["Other (OTHER)"], "ISIC_2": ["Other (OTHER)"], "ISIC_3": ["Nevus (NV)"]}
    labels |= {"ISIC_4": ["Melanoma (MEL)"], "ISIC_5": [AKIEC]}
    return Expected(labels, {"the label 'unheard' is not in the spec's map": 1}, patients=4)


def pad_ufes_20(folder):
    table(
        folder / "metadata.csv",
        """patient_id,lesion_id,age,diagnostic,img_id,biopsed
        PAT_1,10,55,NEV,PAT_1_10_1.png,False
        PAT_1,11,55,SEK,PAT_1_11_2.png,False
        PAT_2,12,60,SCC,PAT_2_12_3.png,True
        PAT_3,13,61,ACK,PAT_3_13_4.png,True
        PAT_4,14,61,BCC,PAT_4_14_5.png,True""",
    )
    names = ("PAT_1_10_1", "PAT_1_11_2", "PAT_2_12_3", "PAT_3_13_4")
    for place, name in enumerate(names):
        picture(folder / f"images/imgs_part_{place % 3 + 1}/{name}.png")
    found = [["Nevus (NV)"], ["Other (OTHER)"], [AKIEC], [AKIEC]]
    labels = {f"{name}.png": one for name, one in zip(names, found, strict=True)}
    return Expected(labels, {"no file for its image": 1}, patients=3)


def aptos_2019(folder):
    table(folder / "train.csv", "id_code,diagnosis\na0,0\na1,1\na2,2\na3,3\na4,4\na5,\na6,7")
    for key in range(7):
        picture(folder / f"train_images/a{key}.png")
    grades = ["No DR", "Mild", "Moderate", "Severe", "Proliferative DR"]
    left = {"no label in 'diagnosis'": 1, "the label '7' is not in the spec's map": 1}
    return Expected({f"a{key}": [grade] for key, grade in enumerate(grades)}, left)


def messidor_2(folder):
    table(
        folder / "messidor_data.csv",
        """image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable
        m1.png,0.0,0.0,1
        m2.png,1.0,0.0,1
        m3.jpg,4.0,1.0,1
        m4.jpg,2.0,0.0,1
        m5.jpg,,,0""",
    )
    table(folder / "messidor-2.csv", "left;right\nm1.png;m2.png\nm3.JPG;m4.JPG")
    picture(folder / "IMAGES/m1.png")
    picture(folder / "IMAGES/m2.png")
    picture(folder / "IMAGES/m3.JPG")
    picture(folder / "IMAGES/m4.JPG")
    labels = {"m1": ["None"], "m2": ["Mild DR"], "m3": ["PDR"], "m4": ["Moderate DR"]}
    return Expected(labels, {"the image is not gradable": 1}, patients=2)


def busi(folder):
    root = folder / "Dataset_BUSI_with_GT"
    for name in ("benign/benign (1)", "benign/benign (2)", "malignant/malignant (1)", "normal/normal (1)"):
        picture(root / f"{name}.png")
    mask(root / "benign/benign (1)_mask.png", (8, 8, 16, 24))
    mask(root / "benign/benign (2)_mask.png", (0, 0, 8, 8))
    mask(root / "benign/benign (2)_mask_1.png", (16, 16, 32, 32))
    mask(root / "malignant/malignant (1)_mask.png", (8, 8, 9, 9))
    mask(root / "normal/normal (1)_mask.png")
    picture(root / "odd.png")
    labels = {"benign (1)": ["Benign"], "benign (2)": ["Benign"], "malignant (1)": ["Malignant"]}
    return Expected(labels | {"normal (1)": ["Normal"]}, {"the file's name does not fit the spec's pattern": 1})


def brain_tumor(folder):
    found = {
        "Training/glioma_tumor/gg (1)": "Glioma Tumor",
        "Training/meningioma_tumor/m (1)": "Meningioma Tumor",
        "Training/pituitary_tumor/p (1)": "Pituitary Tumor",
        "Testing/no_tumor/image(1)": "No Tumor",
    }
    for name in (*found, "Training/other_tumor/o (1)"):
        picture(folder / f"{name}.jpg")
    left = {"the label 'other_tumor' is not in the spec's map": 1}
    return Expected({key: [label] for key, label in found.items()}, left, {"Testing/no_tumor/image(1)": "test"})


def brain_tumor_2(folder):
    for name in ("yes/Y1.jpg", "no/1 no.jpeg", "no/N1.JPG", "no/notes.txt"):
        picture(folder / name) if not name.endswith("txt") else (folder / name).write_text("no case")
    labels = {"yes/Y1": ["Yes"], "no/1 no": ["No"], "no/N1": ["No"]}
    return Expected(labels, {"the file's name does not fit the spec's pattern": 1})


def lc25000(folder):
    found = {
        "colon_aca/colonca1": "Colon adenocarcinomas",
        "colon_n/colonn1": "Benign colon",
        "lung_aca/lungaca1": "Lung adenocarcinomas",
        "lung_n/lungn1": "Benign lung",
        "lung_scc/lungscc1": "Lung squamous cell carcinomas",
    }
    for name in found:
        picture(folder / f"{name.split('_')[0]}_image_sets/{name}.jpeg")
    return Expected({key: [label] for key, label in found.items()})


def kits23(folder):
    cases = [{"case_id": "case_00000", "malignant": True}, {"case_id": "case_00001", "malignant": False}]
    cases += [{"case_id": "case_00002", "malignant": None}, {"case_id": "case_00003", "malignant": True}]
    for case in cases[:3]:
        volume(folder / "dataset" / case["case_id"] / "imaging.nii.gz")
    volume(folder / "dataset/case_00000/segmentation.nii.gz")
    (folder / "dataset/kits23.json").write_text(json.dumps([case | {"comorbidities": {"x": 1}} for case in cases]))
    left = {"no label in 'malignant'": 1, "no file for its volume": 1}
    return Expected({"case_00000": ["Malignant"], "case_00001": ["Benign"]}, left, patients=2)


def lndb(folder):
    table(
        folder / "trainNodules_gt.csv",
        """LNDbID,RadID,RadFindingID,FindingID,x,y,z,AgrLevel,Nodule,Volume,Text
        1,"1,2","1,1",1,0,0,0,2,1,100.5,4
        1,1,2,2,0,0,0,1,0,0,0
        2,1,1,1,0,0,0,1,1,14.137166941154069,5
        2,2,1,2,0,0,0,1,0,0,0
        3,2,1,1,0,0,0,1,0,0,0""",
    )
    for key, place in ((1, 0), (2, 0), (3, 5)):
        volume(folder / f"data{place}/LNDb-{key:04}.nii.gz")
    found = {"LNDb-0001": "nodule ≥ 3mm", "LNDb-0002": "nodule <3mm", "LNDb-0003": "non-nodule"}
    return Expected({key: [label] for key, label in found.items()}, patients=3)


def inspect(folder):
    table(
        folder / "labels_20250611.tsv",
        """impression_id,pe_positive_nlp,pe_acute,pe_subsegmentalonly,1_month_mortality
        1,FALSE,FALSE,FALSE,FALSE
        2,TRUE,TRUE,TRUE,FALSE
        3,TRUE,TRUE,FALSE,Censored
        4,TRUE,FALSE,TRUE,FALSE
        5,TRUE,FALSE,FALSE,FALSE
        6,Censored,,,FALSE""".replace(",", "\t"),
    )
    lines = ["person_id,impression_id,image_id,procedure_DATETIME"]
    lines += [f"{person},{key},PE{key}.nii.gz,2000-01-01" for key, person in zip(range(1, 7), "ppqrst", strict=True)]
    table(folder / "study_mapping_20250611.tsv", "\n".join(lines).replace(",", "\t"))
    parts = ["person_id,impression_id,split", *(f"x,{key},{part}" for key, part in zip(
        range(1, 7), ("train", "train", "train", "valid", "test", "test"), strict=True))]  # fmt: skip
    table(folder / "splits_20250611.tsv", "\n".join(parts).replace(",", "\t"))
    for key in range(1, 6):
        volume(folder / f"CTPA/PE{key}.nii.gz")
    found = ["No PE", "Acute Subsegmental-only PE", "Acute PE", "Subsegmental-only PE", "Chronic PE"]
    left = {"no rule of the spec gives it a label": 1}
    splits = {"1": "train", "2": "train", "3": "train", "4": "valid", "5": "test"}
    return Expected({str(key): [label] for key, label in enumerate(found, start=1)}, left, splits, 4)


def covid_blues(folder):
    table(folder / "clinical_variables.csv", "patient_id,pat_age,cov_test\n1,50,1\n2,60,0")
    (folder / "lus_videos").mkdir()
    for name in ("patient_1_L1", "patient_1_R2", "patient_2_L1", "patient_3_L1"):
        write_video(folder / f"lus_videos/{name}.mp4", count=6)
    labels = {"patient_1_L1": ["Has COVID"], "patient_1_R2": ["Has COVID"], "patient_2_L1": ["No COVID"]}
    return Expected(labels, {"no row of clinical_variables.csv belongs to it": 1}, patients=2)


def coronahack(folder):
    table(
        folder / "Chest_xray_Corona_Metadata.csv",
        """,X_ray_image_name,Label,Dataset_type,Label_2_Virus_category,Label_1_Virus_category
        0,IM-0128-0001.jpeg,Normal,TRAIN,,
        1,person1_bacteria_1.jpeg,Pnemonia,TRAIN,,bacteria
        2,person1_bacteria_2.jpeg,Pnemonia,TRAIN,,bacteria
        3,covid.jpg,Pnemonia,TRAIN,COVID-19,Virus
        4,smoke.jpg,Pnemonia,TRAIN,,Stress-Smoking
        5,person1_virus_6.jpeg,Pnemonia,TEST,,Virus""",
    )
    root = folder / "Coronahack-Chest-XRay-Dataset/Coronahack-Chest-XRay-Dataset"
    for name in ("IM-0128-0001.jpeg", "person1_bacteria_1.jpeg", "person1_bacteria_2.jpeg", "covid.jpg", "smoke.jpg"):
        picture(root / "train" / name, kind="L")
    picture(root / "test/person1_virus_6.jpeg", kind="L")
    labels = {"IM-0128-0001.jpeg": ["Normal"], "covid.jpg": ["Viral Pneumonia"]}
    labels |= {f"person1_bacteria_{key}.jpeg": ["Bacterial Pneumonia"] for key in (1, 2)}
    labels["person1_virus_6.jpeg"] = ["Viral Pneumonia"]
    left = {"no rule of the spec gives it a label": 1}
    return Expected(labels, left, {"person1_virus_6.jpeg": "test"}, 4)


def hemorrhage(folder):
    table(
        folder / "hemorrhage_diagnosis.csv",
        """PatientNumber,SliceNumber,Intraventricular,Subdural,No_Hemorrhage,Fracture_Yes_No
        49,1,0,0,1,0
        49,2,1,0,0,0
        50,1,0,1,0,0
        51,1,0,0,1,0""",
    )
    for name in ("049/brain/1", "049/brain/2", "050/brain/1"):
        picture(folder / f"Patients_CT/{name}.jpg", kind="L")
    labels = {"049-1": ["No Hemorrhage"], "049-2": ["Has Hemorrhage"], "050-1": ["Has Hemorrhage"]}
    return Expected(labels, {"no file for its image": 1}, patients=2)


def vindr_mammo(folder):
    table(
        folder / "breast-level_annotations.csv",
        """study_id,series_id,image_id,laterality,view_position,height,width,breast_birads,breast_density,split
        s1,e,i1,L,CC,32,32,BI-RADS 2,DENSITY C,training
        s1,e,i2,R,MLO,32,32,BI-RADS 5,DENSITY C,training
        s2,e,i3,L,CC,32,32,BI-RADS 1,DENSITY C,test
        s3,e,i4,L,CC,32,32,BI-RADS 0,DENSITY C,training
        s4,e,i5,L,CC,32,32,BI-RADS 1,DENSITY C,training""",
    )
    for name in ("s1/i1", "s1/i2", "s2/i3", "s3/i4", "s4/i5"):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        write_dicom(folder / f"images/{name}.dicom", own(folder / name).integers(0, 1000, (32, 32)))
    labels = {"i1": ["BI-RAD 2"], "i2": ["BI-RAD 5"], "i3": ["BI-RAD 1"], "i5": ["BI-RAD 1"]}
    return Expected(labels, {"the label 'BI-RADS 0' is not in the spec's map": 1}, {"i3": "test"}, 3)


def rspect(folder):
    lines = ["StudyInstanceUID,SeriesInstanceUID,SOPInstanceUID,pe_present_on_image,negative_exam_for_pe,chronic_pe,"
             "acute_and_chronic_pe,indeterminate"]  # fmt: skip
    exams = {"a": "1,0,0,0", "b": "0,0,0,0", "c": "0,1,0,0", "d": "0,0,1,0", "e": "0,0,0,1"}
    for study, told in exams.items():
        (folder / f"train/{study}/s").mkdir(parents=True)
        for place in range(3):
            lines.append(f"{study},s,{place},0,{told}")
            pixels = own(folder / study / str(place)).integers(-500, 500, (32, 32))
            write_dicom(folder / f"train/{study}/s/{place}.dcm", pixels, place, Modality="CT", RescaleType="HU",
                        RescaleSlope=1, RescaleIntercept=0)  # fmt: skip
    table(folder / "train.csv", "\n".join(lines))
    labels = {"a": ["No PE"], "b": ["Acute PE"], "c": ["Chronic PE"]}
    return Expected(labels, {"no rule of the spec gives it a label": 2}, patients=3)


def cbis_ddsm(folder):
    """Mass cases of two patients, one of whom has a calcification in the test part; the mammogram of the last is
    not there. Names of files as the tables say, and as later downloads have them."""
    head = "patient_id,{} density,left or right breast,image view,abnormality id,abnormality type,assessment,pathology,"
    head += "image file path,cropped image file path,ROI mask file path"
    rows = {
        "mass_case_description_train_set": ("breast", [("P_00001", "LEFT,CC,1", 4), ("P_00001", "LEFT,CC,2", 5),
                                                       ("P_00001", "LEFT,MLO,1", 0), ("P_00002", "RIGHT,CC,1", 3)]),
        "mass_case_description_test_set": ("breast", [("P_00003", "RIGHT,CC,1", 2)]),
        "calc_case_description_train_set": ("breast", [("P_00004", "LEFT,CC,1", 1), ("P_00005", "LEFT,CC,1", 2)]),
        "calc_case_description_test_set": ("breast", [("P_00002", "RIGHT,MLO,1", 4)]),
    }  # fmt: skip
    for name, (density, cases) in rows.items():
        kind = "Mass" if name.startswith("mass") else "Calc"
        part = "Training" if "train" in name else "Test"
        lines = [head.format(density)]
        for who, what, grade in cases:
            side, view, number = what.split(",")
            place = f"{kind}-{part}_{who}_{side}_{view}"
            roi = f'"{place}_{number}/1.3/1.4/000001.dcm\n"'  # the tables have a line break there
            lines.append(
                f"{who},3,{side},{view},{number},mass,{grade},BENIGN,{place}/1.3.6/1.3.7/000000.dcm,{roi},{roi}"
            )
            if who == "P_00005":
                continue
            file = folder / f"CBIS-DDSM/{place}/1.3.6/1.3.7" / ("000000.dcm" if kind == "Mass" else "1-1.dcm")
            file.parent.mkdir(parents=True, exist_ok=True)
            write_dicom(file, own(file).integers(0, 1000, (32, 32)), Modality="MG")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    labels = {
        "Mass-Training_P_00001_LEFT_CC": ["BI-RAD 5"],
        "Mass-Training_P_00001_LEFT_MLO": ["BI-RAD 0"],
        "Mass-Test_P_00003_RIGHT_CC": ["BI-RAD 2"],
        "Calc-Training_P_00004_LEFT_CC": ["BI-RAD 1"],
        "Calc-Test_P_00002_RIGHT_MLO": ["BI-RAD 4"],
    }
    left = {"its patient is in a held-out split, too": 1, "no file for its image": 1}
    splits = {"Mass-Test_P_00003_RIGHT_CC": "test", "Calc-Test_P_00002_RIGHT_MLO": "test"}
    return Expected(labels, left, splits, 4)


def cmmd(folder):
    table(
        folder / "CMMD_clinicaldata_revision.csv",
        """ID1,LeftRight,Age,number,abnormality,classification,subtype
        D1-0001,R,44,2,calcification,Benign,
        D1-0002,L,40,2,calcification,Benign,
        D1-0002,R,40,2,mass,Malignant,
        D2-0001,L,61,2,both,Malignant,Luminal A""",
    )
    images = {"D1-0001": "RR", "D1-0002": "LR", "D2-0001": "LR"}
    labels = {}
    for who, sides in images.items():
        place = f"{who}/07-18-2010-NA-NA-79377/1.000000-NA-70244"
        (folder / "CMMD" / place).mkdir(parents=True)
        for number, side in enumerate(sides, start=1):
            file = folder / "CMMD" / place / f"1-{number}.dcm"
            pixels = own(folder / who / file.name).integers(0, 255, (32, 32))
            write_dicom(file, pixels, Modality="MG", ImageLaterality=side, PatientName="NOBODY")
            labels[f"{place.replace('/', '-', 1)}/1-{number}"] = ["Benign"]
    one, two, three = (f"{who}-07-18-2010-NA-NA-79377/1.000000-NA-70244/1-" for who in images)
    labels[f"{two}2"] = labels[f"{three}1"] = ["Malignant"]
    del labels[f"{three}2"]  # the other breast of the third patient has no row
    assert f"{one}1" in labels
    return Expected(labels, {"no row of CMMD_clinicaldata_revision.csv belongs to it": 1}, patients=3)


def jichi(folder):
    table(
        folder / "list.csv",
        """Image,Davis_grading_of_concatenated_figures,Davis_grading_of_one_figure
        1_1_R.jpg,sdr,ndr
        1_2_L.jpg,ppdr,sdr
        2_1_R.jpg,ppdr,ppdr
        3_1_R.jpg,pdr,pdr
        3_2_L.jpg,pdr,pdr""",
    )
    for name in ("1_1_R", "1_2_L", "2_1_R", "3_1_R"):
        picture(folder / f"{name}.jpg")
    labels = {
        "1_2_L.jpg": ["SDR (simple diabetic retinopathy)"],
        "2_1_R.jpg": ["PPDR (pre-proliferative diabetic retinopathy)"],
        "3_1_R.jpg": ["PDR (proliferative diabetic retinopathy)"],
    }
    left = {"the label 'ndr' is left out by the spec": 1, "no file for its image": 1}
    return Expected(labels, left, patients=3)


def covid_us(folder):
    (folder / "data/video/clean").mkdir(parents=True)
    names = {"1_butterfly_covid_prc_convex": "Covid", "20_butterfly_normal_prc_convex": "Normal",
             "23_grepmed_pneumonia_prc_linear": "Pneumonia", "95_litfl_other_prc_convex": ""}  # fmt: skip
    for place, name in enumerate(names):
        write_video(folder / f"data/video/clean/{name}_clean.avi", count=6 + place)
    labels = {name.split("_prc")[0]: [label] for name, label in names.items() if label}
    return Expected(labels, {"the label 'other' is left out by the spec": 1})


def bcss(folder):
    """Tissue by its number; 0 is outside, 7 excluded, 10 plasma cells."""
    regions = {
        "TCGA-A1-A0SK-DX1_xmin1_ymin1_MPP-0.2500": {0: 8, 1: 16, 2: 7, 4: 1},  # rows of 32; 4 has 1 of 24
        "TCGA-A2-A0YE-DX1_xmin1_ymin1_MPP-0.2500": {3: 16, 4: 16},
        "TCGA-A2-A0YE-DX1_xmin9_ymin1_MPP-0.2500": {2: 32},
        "TCGA-OL-A5D6-DX1_xmin1_ymin1_MPP-0.2500": {1: 31, 10: 1},
        "TCGA-E2-A14N-DX1_xmin1_ymin1_MPP-0.2500": {7: 30, 0: 2},
    }
    (folder / "masks").mkdir()
    for name, rows in regions.items():
        picture(folder / f"images/{name}.png")
        array = np.concatenate([np.full((count, 32), number, np.uint8) for number, count in rows.items()])
        Image.fromarray(array).save(folder / f"masks/{name}.png")
    found = (["Tumor", "Stroma"], ["Lymphocytic infiltrate", "Necrosis/debris"], ["Stroma"], ["Tumor"])
    names = list(regions)
    labels = dict(zip(names[:4], found, strict=True))
    return Expected(labels, {"no label is positive": 1}, {names[3]: "test"}, 3)


MAKERS = {
    maker.__name__: maker
    for maker in (
        aptos_2019, bcss, brain_tumor, brain_tumor_2, busi, cbis_ddsm, chapman, chexpert, cmmd, coronahack, covid_19,
        covid_blues, covid_us, cpsc, georgia, ham10000, hemorrhage, inspect, isic_2020, jichi, kits23, lc25000, lndb,
        messidor_2, mimic_cxr, pad_ufes_20, ptb_xl, rspect, vindr_cxr, vindr_mammo,
    )
}  # fmt: skip
