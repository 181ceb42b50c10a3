import enum
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field, model_validator

from leaven.cli.overrides import describe_config, parse_overrides
from leaven.errors import ConfigError


class Norm(enum.Enum):
    LAYER = "layer"
    RMS = "rms"


class Optimizer(BaseModel):
    lr: float = Field(1e-3, gt=0, le=1, description="peak learning rate")
    betas: tuple[float, float] = (0.9, 0.999)


class Config(BaseModel):
    name: str = Field("run", min_length=1)
    steps: int = Field(100, ge=1, description="optimizer steps")
    positions: Literal["t5", "rotary"] = "t5"
    norm: Norm = Norm.RMS
    warm: bool = False
    limit: Annotated[int, Field(ge=2)] | None = None
    tasks: list[str] = ["msp"]
    optimizer: Optimizer = Optimizer()


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], {}),
        (["steps=5", "warm=true"], {"steps": 5, "warm": True}),
        (["warm=True", "steps=7"], {"steps": 7, "warm": True}),
        (["name=a=b c"], {"name": "a=b c"}),
        (["name=123"], {"name": "123"}),
        (["name=null"], {"name": "null"}),
        (['tasks=["msp", "it"]'], {"tasks": ["msp", "it"]}),
        (["limit=3"], {"limit": 3}),
        (["limit=null"], {"limit": None}),
        (["limit=None"], {"limit": None}),
        (["norm=layer", "positions=rotary"], {"norm": Norm.LAYER, "positions": "rotary"}),
        (["optimizer.lr=0.5"], {"optimizer": Optimizer(lr=0.5)}),
        (["optimizer.lr=.5", "optimizer.betas=[0.5, 0.6]"], {"optimizer": Optimizer(lr=0.5, betas=(0.5, 0.6))}),
        (['optimizer={"lr": 0.25}'], {"optimizer": Optimizer(lr=0.25)}),
        (["optimizer={}"], {}),
    ],
)
def test_overrides_equal_the_config_built_by_hand(items, expected):
    assert parse_overrides(Config, items) == Config(**expected)


@pytest.mark.parametrize(
    ("item", "parts"),
    [
        ("step=5", ["no option 'step'", "there are name, steps", "Did you mean steps?"]),
        ("optimizer.rl=1", ["no option 'optimizer.rl'", "optimizer.lr, optimizer.betas", "Did you mean optimizer.lr?"]),
        ("lr=1", ["no option 'lr'", "Did you mean optimizer.lr?"]),
        ('optimizer={"rl": 1}', ["no option 'optimizer.rl'"]),
        ("optimiser.lr=1", ["no option 'optimiser.lr'", "Did you mean optimizer.lr?"]),
        ("steps.x=1", ["steps has no options of its own"]),
        ("steps", ["'steps' is not of the form key=value"]),
        ("=5", ["not of the form key=value"]),
        ("steps=0", ["steps is 0", "expected int >= 1", "optimizer steps"]),
        ("steps=many", ["steps is 'many'", "expected int >= 1"]),
        ("steps=", ["steps is ''", "expected int >= 1"]),
        ("steps=null", ["steps is None", "expected int >= 1"]),
        ("optimizer.lr=2", ["optimizer.lr is 2", "expected float > 0, <= 1", "peak learning rate"]),
        ("optimizer.lr=nan", ["optimizer.lr is", "expected float > 0"]),
        ("optimizer=3", ["optimizer is 3"]),
        ("positions=alibi", ["positions is 'alibi'", "expected one of t5, rotary"]),
        ("norm=batch", ["norm is 'batch'", "expected one of layer, rms"]),
        ("limit=1", ["limit is 1", "expected int or none >= 2"]),
        ("tasks=msp", ["tasks is 'msp'", "expected list[str]"]),
        ("name=", ["name is ''", "length >= 1"]),
    ],
)
def test_what_cannot_be_used_is_named_with_what_was_expected(item, parts):
    with pytest.raises(ConfigError) as caught:
        parse_overrides(Config, [item])
    for part in parts:
        assert part in str(caught.value)


class Union(BaseModel):
    slow: Annotated[float, Field(ge=0)] | Annotated[tuple[float, ...], Field(min_length=1)] = 0.5


def test_a_value_that_fits_no_type_of_a_union_is_told_once():
    with pytest.raises(ConfigError) as caught:
        parse_overrides(Union, ["slow=-1"])
    assert str(caught.value).startswith("slow is -1, expected float or tuple[float, ...]")
    assert "\n" not in str(caught.value)


def test_a_key_given_twice():
    with pytest.raises(ConfigError, match="steps is given twice"):
        parse_overrides(Config, ["steps=1", "steps=2"])
    with pytest.raises(ConfigError, match="given twice"):
        parse_overrides(Config, ['optimizer={"lr": 0.5}', "optimizer.lr=0.25"])
    for order in (["optimizer.lr=0.25", "optimizer=3"], ["optimizer=3", "optimizer.lr=0.25"]):
        with pytest.raises(ConfigError, match="twice"):
            parse_overrides(Config, order)


def test_every_wrong_value_is_reported():
    with pytest.raises(ConfigError) as caught:
        parse_overrides(Config, ["steps=0", "optimizer.lr=-1"])
    assert "steps is 0" in str(caught.value) and "optimizer.lr is -1" in str(caught.value)


def test_a_required_option_and_a_rule_over_several():
    class Strict(BaseModel):
        data: str = Field(description="a source")
        low: int = 0
        high: int = 1

        @model_validator(mode="after")
        def ordered(self):
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

    with pytest.raises(ConfigError, match="data must be given: str, a source"):
        parse_overrides(Strict, [])
    with pytest.raises(ConfigError, match=r"Strict: .*low is above high"):
        parse_overrides(Strict, ["data=x", "low=5"])
    assert describe_config(Strict)[0].default == "required"


def test_the_description_has_a_row_for_every_option():
    rows = {row.name: row for row in describe_config(Config)}
    assert list(rows) == [
        *("name", "steps", "positions", "norm", "warm", "limit", "tasks"),
        *("optimizer.lr", "optimizer.betas"),
    ]
    lr = rows["optimizer.lr"]
    assert (lr.type, lr.default, lr.bounds, lr.description) == ("float", "0.001", "> 0, <= 1", "peak learning rate")
    assert rows["limit"].bounds == ">= 2"
    assert rows["norm"].default == "rms"
    assert rows["optimizer.betas"].type == "tuple[float, float]"
