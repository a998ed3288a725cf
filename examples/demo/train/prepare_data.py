"""Build the demo model's corpus: three domains, a tokenizer, a train / held-out split.

    python prepare_data.py WORK_DIR

Sources (all public domain or PSF; the README lists them):

* ``en``: the King James Bible, one document per chapter (Debian package ``bible-kjv``);
* ``py``: CPython's standard library, one document per top-level statement group, with comments and
  docstrings removed by ``ast.unparse`` so that the domain is code and nothing else;
* ``zh``: classical Chinese poems, one document per poem (Debian package ``fortunes-zh``), the Book
  of Songs converted to simplified characters with OpenCC.

Writes ``tokens.safetensors`` (``{domain}.train`` and ``{domain}.held_out``, int32, documents as
``BOS ... EOS``), ``held_out.jsonl`` (the held-out documents as text) and ``tokenizer/``.

Whole documents are held out (for Python whole modules), and training poems that quote a clause of a
held-out poem are dropped, so the held-out loss measures text that was never seen.
"""

import argparse
import ast
import json
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 3584
MODEL_MAX_LENGTH = 4096
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"
"""A base model continues text: the messages, one after the other."""
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
"""DeepSeek's own names: inference engines' DeepSeek-V4 chat encoders write them literally."""
CHAT_MARKUP = "|".join(
    [
        r"\AReasoning Effort: (?:[^\n]+\n)+\n",
        "<｜(?:User|Assistant|latest_reminder)｜>",
        "</?think>",
    ]
)
"""What those encoders put around messages. The tokenizer drops it: a base model continues text."""
HELD_OUT_EVERY = {"en": 40, "py": 25, "zh": 25}
"""One document (module, for Python) in this many is held out."""
FORTUNES_DIR = Path("/usr/share/games/fortunes")
MIN_QUOTE_CHARS = 5
"""A clause this long that a training poem shares with a held-out poem counts as a quotation."""
TOKENIZER_EN_CHARS = 2_500_000
TOKENIZER_PY_CHARS = 2_500_000
TOKENIZER_ZH_REPEATS = 4

SKIPPED_PACKAGES = {
    "test", "tests", "idle_test", "encodings", "pydoc_data", "turtledemo", "ensurepip", "idlelib",
    "site-packages", "lib2to3", "__pycache__", "msilib", "distutils", "tkinter", "config",
}  # fmt: skip
"""Left out of ``py``: data tables, tests, and the packages with the most unusual style."""
MAX_PY_LINE_CHARS = 140
MIN_PY_DOC_CHARS = 80

POETS = {
    "辛弃疾", "苏轼", "李煜", "柳永", "李白", "陆游", "吴文英", "晏几道", "欧阳修", "姜夔",
    "晏殊", "杜甫", "张炎", "白居易", "蒋捷", "王沂孙", "张元干", "刘过", "史达祖", "陈亮",
    "张孝祥", "刘克庄", "刘辰翁", "张先", "周密", "韦庄", "温庭筠", "王维", "李商隐", "冯延巳",
    "纳兰性德", "陈人杰", "范成大", "李清照", "汪元量", "袁去华", "王安石", "吴潜", "朱淑真",
    "范仲淹", "韩元吉", "秦观", "戴复古", "岳飞", "刘禹锡", "岑参", "杜牧", "文天祥", "杨万里",
    "王昌龄", "杨炎正", "卢祖皋", "张籍", "程垓", "刘长卿", "孙光宪", "赵善括", "吕本中", "黄机",
    "韩愈", "黄庭坚", "陈与义", "韦应物", "吕渭老", "牛希济", "赵鼎", "王琪", "邓剡", "张泌",
    "张抡", "戴叔伦", "孟浩然", "贺铸", "周邦彦", "柳宗元", "孟郊", "元稹", "李贺", "高适",
    "王之涣", "陶渊明", "曹操", "曹植", "屈原", "骆宾王", "王勃", "贺知章", "陈子昂", "崔颢",
    "李益", "李之仪", "李绅", "贾岛", "许浑", "罗隐", "龚自珍", "敦煌",
}  # fmt: skip
"""Poets of the anthology file whose works are centuries out of copyright (敦煌: anonymous)."""


def english_chapters() -> Iterator[str]:
    """The King James Bible, one chapter per document, one verse per line."""
    listing = subprocess.run(
        ["bible", "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=True
    ).stdout
    chapter: list[str] = []
    current = ""
    for line in listing.splitlines():
        match = re.match(r"^(\S+?\d+):\d+ (.*)$", line)
        if not match:
            continue
        if match[1] != current and chapter:
            yield "\n".join(chapter) + "\n"
            chapter = []
        current = match[1]
        chapter.append(match[2].strip())
    yield "\n".join(chapter) + "\n"


def python_modules() -> Iterator[list[str]]:
    """Standard-library modules, each a list of documents (imports, then one per definition)."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if SKIPPED_PACKAGES.intersection(part for part in path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        documents = [text for text in split_module(strip_docstrings(tree)) if is_code(text)]
        if documents:
            yield documents


def strip_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            kept = [
                statement
                for statement in node.body
                if not (
                    isinstance(statement, ast.Expr)
                    and isinstance(statement.value, ast.Constant)
                    and isinstance(statement.value.value, str)
                )
            ]
            node.body = kept or ([] if isinstance(node, ast.Module) else [ast.Pass()])
    return tree


def split_module(tree: ast.Module) -> Iterator[str]:
    """Runs of simple statements and single definitions, as text in one uniform style."""
    run: list[ast.stmt] = []
    for statement in [*tree.body, None]:
        is_definition = isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if (statement is None or is_definition) and run:
            yield ast.unparse(ast.Module(body=run, type_ignores=[])).strip() + "\n"
            run = []
        if statement is None:
            return
        if is_definition:
            yield ast.unparse(statement).strip() + "\n"
        else:
            run.append(statement)


def is_code(text: str) -> bool:
    """False for scraps and for data tables, which a small model can only memorise."""
    return (
        len(text) >= MIN_PY_DOC_CHARS
        and text.isascii()
        and max(map(len, text.splitlines())) <= MAX_PY_LINE_CHARS
    )


def fortune_entries(name: str) -> list[str]:
    text = (FORTUNES_DIR / name).read_text(encoding="utf-8")
    text = re.sub("\x1b\\[[0-9;]*m", "", text)
    return [entry.strip() for entry in text.split("\n%\n") if entry.strip()]


def chinese_poems() -> Iterator[str]:
    """Poems: ``《title》``, ``作者：poet`` (not in the Book of Songs), then the lines."""
    for name in ("tang300", "song100"):
        for entry in fortune_entries(name):
            poem = re.sub(r"（.*?）", "", entry).replace("题目:", "").replace("作者:", "作者：")
            yield poem.strip() + "\n"
    try:
        from opencc import OpenCC
    except ImportError:
        sys.exit("prepare_data: OpenCC is missing; pip install opencc-python-reimplemented")
    simplify = OpenCC("t2s").convert
    for entry in fortune_entries("chinese"):
        if entry.startswith("《詩經"):
            head, *body = simplify(entry).splitlines()
            lines = [line.strip() for line in body if line.strip()]
            yield "\n".join([head.replace("‧ ", "·"), *lines]) + "\n"
            continue
        match = re.search(r"\n\s*--\s*([^《\s]+)(《[^》]+》)\s*$", entry)
        if match and match[1] in POETS:
            lines = [line.strip() for line in entry[: match.start()].splitlines() if line.strip()]
            title = re.sub(r"\s*/.*》", "》", match[2])
            yield "\n".join([title, f"作者：{match[1]}", *lines]) + "\n"


def clauses(poem: str) -> set[str]:
    parts = re.split(r"[\s，。！？；：、]+", poem)
    return {part for part in parts if len(part) >= MIN_QUOTE_CHARS}


def split_domains() -> dict[str, dict[str, list[str]]]:
    """``{domain: {"train": [document], "held_out": [document]}}``, deterministic."""
    groups: dict[str, list[list[str]]] = {
        "en": [[chapter] for chapter in english_chapters()],
        "py": list(python_modules()),
        "zh": [[poem] for poem in dict.fromkeys(chinese_poems())],
    }
    split: dict[str, dict[str, list[str]]] = {}
    for domain, members in groups.items():
        every = HELD_OUT_EVERY[domain]
        held_out = [doc for group in members[every - 1 :: every] for doc in group]
        train = [doc for i, group in enumerate(members) if i % every != every - 1 for doc in group]
        split[domain] = {"train": train, "held_out": held_out}
    quoted = set().union(*(clauses(poem) for poem in split["zh"]["held_out"]))
    kept = [poem for poem in split["zh"]["train"] if not clauses(poem) & quoted]
    split["zh"]["train"] = kept
    return split


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; each Chinese character is a word of its own; ``BOS`` is added in front."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Replace(Regex(CHAT_MARKUP), "")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[一-鿿]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=[BOS, EOS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, bpe.token_to_id(BOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=MODEL_MAX_LENGTH,
        chat_template=CHAT_TEMPLATE,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work_dir", type=Path)
    work_dir = parser.parse_args().work_dir
    work_dir.mkdir(parents=True, exist_ok=True)

    split = split_domains()
    texts = [
        "".join(split["en"]["train"])[:TOKENIZER_EN_CHARS],
        "".join(split["py"]["train"])[:TOKENIZER_PY_CHARS],
        *split["zh"]["train"] * TOKENIZER_ZH_REPEATS,
    ]
    tokenizer = train_tokenizer(texts)
    tokenizer.save_pretrained(work_dir / "tokenizer")

    tensors = {}
    with (work_dir / "held_out.jsonl").open("w", encoding="utf-8") as held_out_file:
        for domain, parts in split.items():
            for part, documents in parts.items():
                ids = [token for doc in documents for token in [*tokenizer.encode(doc), 1]]
                tensors[f"{domain}.{part}"] = torch.tensor(ids, dtype=torch.int32)
                n_bytes = sum(len(doc.encode()) for doc in documents)
                print(
                    f"{domain} {part}: {len(documents)} documents, {n_bytes} bytes, "
                    f"{len(ids)} tokens, {n_bytes / len(ids):.2f} bytes per token"
                )
            for doc in parts["held_out"]:
                row = {"domain": domain, "text": doc}
                held_out_file.write(json.dumps(row, ensure_ascii=False) + "\n")
    save_file(tensors, work_dir / "tokens.safetensors")


if __name__ == "__main__":
    main()
