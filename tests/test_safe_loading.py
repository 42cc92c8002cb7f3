"""Loading without running code: the same model from plain settings and tensors, and nothing else."""

import base64
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_laplace import Core, LaplaceRecurrentPPO, MlpFeatures, VariationalPosterior
from sb3_laplace.algorithm.settings import MEMBER, decode, encode
from tests.helpers import RandomEnv
from tests.test_laplace_recurrent_ppo import POSTERIORS, random_vec_env, small_model


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of a zip, each of its files as the function returns it; None leaves it out."""
    copy = path.with_name("rewritten.zip")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return copy


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.write_text, (self.path, "was here")


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_the_same_model(posterior: str, tmp_path: Path) -> None:
    model = small_model(policy_kwargs=POSTERIORS[posterior], n_epochs=1, reward_coef=0.5, stats_window_size=7)
    model.learn(36)
    model.save(tmp_path / "model")
    env = random_vec_env(5)
    loaded = LaplaceRecurrentPPO.load(tmp_path / "model", env=env, device="cpu", weights_only=True)
    usual = LaplaceRecurrentPPO.load(tmp_path / "model", env=random_vec_env(5), device="cpu")
    for name, weight in model.policy.state_dict().items():
        assert th.equal(loaded.policy.state_dict()[name], weight)
    for name in ("num_timesteps", "n_steps", "kl_coef", "reward_coef", "seed", "posterior_settings", "n_envs"):
        assert getattr(loaded, name) == getattr(usual, name), name
    assert loaded._stats_window_size == 7
    obs = env.reset()
    action, state = model.predict(obs, deterministic=True)
    other, other_state = loaded.predict(obs, deterministic=True)
    np.testing.assert_array_equal(action, other)
    for part, other_part in zip(state, other_state, strict=True):
        np.testing.assert_array_equal(part, other_part)
    # Training goes on from the same optimizer
    for one in (loaded, usual):
        one.set_random_seed(1)
        one.learn(60, reset_num_timesteps=False)
    np.testing.assert_allclose(
        loaded.policy.parameters_to_vector(), usual.policy.parameters_to_vector(), rtol=1e-6, atol=1e-7
    )


OBSERVATIONS = {
    "box": (spaces.Box(np.array([-1.0, -np.inf]), np.array([1.0, np.inf]), dtype=np.float64), "LaplaceLstmPolicy"),
    "image": (spaces.Box(0, 255, (3, 40, 40), np.uint8), "LaplaceCnnLstmPolicy"),
    "dict": (
        spaces.Dict({"b": spaces.Discrete(4), "a": spaces.MultiDiscrete([2, 3]), "c": spaces.MultiBinary([2, 2])}),
        "LaplaceMultiInputLstmPolicy",
    ),
}


@pytest.mark.parametrize("observations", OBSERVATIONS)
@pytest.mark.parametrize("actions", [spaces.Discrete(3, start=2), spaces.MultiBinary(3), spaces.Box(-1, 1, (2,))])
def test_every_space(observations: str, actions: spaces.Space, tmp_path: Path) -> None:
    space, policy = OBSERVATIONS[observations]
    model = small_model(RandomEnv(space, actions), policy)
    model.save(tmp_path / "model")
    loaded = LaplaceRecurrentPPO.load(tmp_path / "model", device="cpu", weights_only=True)
    assert loaded.observation_space == model.observation_space
    assert loaded.action_space == actions


def test_settings_of_every_kind(tmp_path: Path) -> None:
    model = small_model(
        learning_rate=LinearSchedule(1e-3, 1e-4, 0.5),
        clip_range=ConstantSchedule(0.3),
        ent_coef=LinearSchedule(0.1, 0.0, 1.0),
        clip_range_vf=0.2,
        policy_kwargs={
            "posterior": VariationalPosterior,
            "features_extractor_class": MlpFeatures,
            "features_extractor_kwargs": {"net_arch": (6, 5), "activation_fn": th.nn.SiLU},
            "activation_fn": th.nn.ELU,
            "optimizer_class": th.optim.AdamW,
            "optimizer_kwargs": {"weight_decay": 0.1},
            "net_arch": {"pi": [4], "vf": [5, 6]},
            "head_inputs": ("hidden",),
        },
    )
    model.save(tmp_path / "model")
    loaded = LaplaceRecurrentPPO.load(tmp_path / "model", device="cpu", weights_only=True)
    assert loaded.policy_kwargs == model.policy_kwargs
    assert [loaded.lr_schedule(p) for p in (1.0, 0.75, 0.0)] == [model.lr_schedule(p) for p in (1.0, 0.75, 0.0)]
    assert loaded.clip_range(0.5) == 0.3
    assert loaded.ent_coef(0.5) == 0.05


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.tuples(inner, inner)
            | st.dictionaries(st.text() | st.sampled_from(["class", "space", "dict"]), inner, max_size=3)
        ),
        max_leaves=12,
    )
)
def test_plain_values_come_back(value: Any) -> None:
    assert decode(json.loads(json.dumps(encode(value)))) == value


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8, bool])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 2)])
def test_arrays_come_back(dtype: Any, shape: tuple[int, ...]) -> None:
    for array in (np.ones(shape, dtype), np.arange(int(np.prod(shape)), dtype=np.float64).reshape(shape).astype(dtype)):
        back = decode(json.loads(json.dumps(encode(array))))
        np.testing.assert_array_equal(back, array)
        assert back.dtype == array.dtype


def test_schedules_of_ones_own_become_numbers(tmp_path: Path) -> None:
    """At any progress: one that has come to 0 is still a schedule, and not a number that would be refused."""
    model = small_model(
        learning_rate=lambda progress: 0.01 * progress,
        policy_coef=lambda progress: progress,
        kl_coef=lambda progress: progress,
        clip_range_vf=lambda progress: 0.2 * progress,
    )
    for expected in (1.0, 0.0):
        model.save(tmp_path / "model")
        with pytest.warns(UserWarning, match="learning_rate, .*policy_coef were functions; they are now the values"):
            loaded = LaplaceRecurrentPPO.load(tmp_path / "model", device="cpu", weights_only=True)
        assert loaded.lr_schedule(0.5) == pytest.approx(0.01 * expected)
        assert loaded.policy_coef(0.5) == pytest.approx(expected)
        model.learn(36)


def test_a_subclass_with_a_constructor_of_its_own(tmp_path: Path) -> None:
    class Own(LaplaceRecurrentPPO):
        def __init__(self, *args: Any, bonus: float = 3.0, **kwargs: Any) -> None:
            self.bonus = bonus
            super().__init__(*args, **kwargs)

    class Forgetful(LaplaceRecurrentPPO):
        def __init__(self, *args: Any, bonus: float = 3.0, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    Own("LaplaceLstmPolicy", random_vec_env(), n_steps=8, bonus=5.0).save(tmp_path / "own")
    loaded = Own.load(tmp_path / "own", device="cpu", weights_only=True)
    assert (loaded.bonus, loaded.n_steps) == (5.0, 8)
    Forgetful("LaplaceLstmPolicy", random_vec_env(), n_steps=8).save(tmp_path / "forgetful")
    assert Forgetful.load(tmp_path / "forgetful", device="cpu").n_steps == 8
    with pytest.raises(ValueError, match=r"bonus \(the model has no attribute of this name\)"):
        Forgetful.load(tmp_path / "forgetful", device="cpu", weights_only=True)


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    class OwnActivation(th.nn.Tanh):
        pass

    path = tmp_path / "model.zip"
    small_model(policy_kwargs={"activation_fn": OwnActivation}).save(path)
    with pytest.raises(ValueError, match=r"its settings hold .*policy_kwargs\['activation_fn'\] = .*OwnActivation"):
        LaplaceRecurrentPPO.load(path, weights_only=True)
    RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=8).save(path)
    with pytest.raises(ValueError, match="holds no settings that can be read without running its code"):
        LaplaceRecurrentPPO.load(path, weights_only=True)
    small_model().save(path)
    with pytest.raises(ValueError, match="custom_objects cannot be given with weights_only=True"):
        LaplaceRecurrentPPO.load(path, weights_only=True, custom_objects={"n_steps": 3})
    with pytest.raises(ValueError, match=r"policy_kwargs are \{.*\} in the file, got \{\}"):
        LaplaceRecurrentPPO.load(path, weights_only=True, policy_kwargs={})
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        LaplaceRecurrentPPO.load(path, weights_only=True, env="CartPole-v1")
    loaded = LaplaceRecurrentPPO.load(path, weights_only=True, n_epochs=7)
    assert loaded.n_epochs == 7


def test_file_objects(tmp_path: Path) -> None:
    model = small_model()
    buffer = io.BytesIO()
    model.save(buffer)
    for weights_only in (True, False):
        buffer.seek(0)
        loaded = LaplaceRecurrentPPO.load(buffer, device="cpu", weights_only=weights_only)
        assert th.equal(loaded.policy.value_net.weight, model.policy.value_net.weight)
    with open(tmp_path / "model.zip", "wb") as file:
        model.save(file)
    LaplaceRecurrentPPO.load(tmp_path / "model.zip", device="cpu", weights_only=True)


# -- files that mean harm -------------------------------------------------------------------------------------


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    """Whatever stands in the place of SB3's pickled attributes is not even looked at."""
    trace, path = tmp_path / "trace", tmp_path / "model.zip"
    small_model().save(path)
    code = base64.b64encode(cloudpickle.dumps(Malicious(trace))).decode()

    def poison(name: str, content: bytes) -> bytes:
        if name != "data":
            return content
        data = json.loads(content)
        data["policy_kwargs"] = {":type:": "dict", ":serialized:": code}
        return json.dumps(data).encode()

    poisoned = rewritten(path, poison)
    LaplaceRecurrentPPO.load(poisoned, device="cpu", weights_only=True)
    assert not trace.exists()
    with pytest.raises(Exception):  # noqa: B017, PT011 (whatever comes of it)
        LaplaceRecurrentPPO.load(poisoned, device="cpu")
    assert trace.exists()  # SB3's way runs it, so this file could have done harm


@pytest.mark.parametrize("name", ["policy.pth", "policy.optimizer.pth"])
def test_tensors_hold_no_code(name: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "model.zip"
    small_model().save(path)
    buffer = io.BytesIO()
    th.save({"weight": Malicious(trace)}, buffer)
    poisoned = rewritten(path, lambda file, content: buffer.getvalue() if file == name else content)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        LaplaceRecurrentPPO.load(poisoned, device="cpu", weights_only=True)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("setting", "content", "message"),
    [
        ("policy", {"class": "os.system"}, "the class 'os.system' is not among those that settings may name"),
        ("policy", {"class": "builtins.eval"}, "is not among those"),
        ("policy_kwargs", {"dict": {"activation_fn": {"class": "subprocess.Popen"}}}, "is not among those"),
        ("learning_rate", {"schedule": ["eval", ["1"]]}, "'eval' is no schedule"),
        ("observation_space", {"space": ["Text", {"dict": {}}]}, "'Text' is no space"),
        ("n_steps", {"array": [[1], [1], "O"]}, "arrays of 'O' are no setting"),
        ("n_steps", {"call": ["print"]}, "is no setting that this version knows"),
        ("n_steps", {"class": "x", "dict": {}}, "is no setting that this version knows"),
    ],
)
def test_settings_that_mean_harm(setting: str, content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    small_model().save(path)

    def poison(name: str, old: bytes) -> bytes:
        if name != MEMBER:
            return old
        document = json.loads(old)
        document["settings"][setting] = content
        return json.dumps(document).encode()

    with pytest.raises(ValueError, match=message):
        LaplaceRecurrentPPO.load(rewritten(path, poison), device="cpu", weights_only=True)


def test_settings_name_attributes_of_the_model_only(tmp_path: Path) -> None:
    """A file cannot set what is no setting, such as a method."""
    path = tmp_path / "model.zip"
    small_model().save(path)

    def poison(name: str, old: bytes) -> bytes:
        if name != MEMBER:
            return old
        document = json.loads(old)
        document["settings"]["_setup_model"] = 1
        return json.dumps(document).encode()

    with pytest.raises(ValueError, match=r"settings that this version does not know: \['_setup_model'\]"):
        LaplaceRecurrentPPO.load(rewritten(path, poison), device="cpu", weights_only=True)


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"format": 1},
        {"format": 1, "settings": {}, "missing": [], "approximated": []},
        {"format": 1, "settings": None, "missing": [], "approximated": []},
        {"format": 2, "settings": {}, "missing": [], "approximated": []},
        ("policy", 3),
        ("policy_kwargs", None),
        ("observation_space", None),
        ("action_space", {"space": ["Box", 3]}),
        ("clip_range", {"schedule": ["LinearSchedule"]}),
        ("posterior_settings", []),
        ("n_envs", {"class": ["a"]}),
    ],
)
def test_damaged_settings_are_one_clear_error(document: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    small_model().save(path)

    def damage(name: str, old: bytes) -> bytes:
        if name != MEMBER:
            return old
        if not isinstance(document, tuple):
            return json.dumps(document).encode()
        damaged = json.loads(old)
        damaged["settings"][document[0]] = document[1]
        return json.dumps(damaged).encode()

    with pytest.raises(ValueError, match="settings"):
        LaplaceRecurrentPPO.load(rewritten(path, damage), device="cpu", weights_only=True)


@pytest.mark.parametrize("content", [b"no zip", b""])
def test_what_is_no_zip(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(content)
    with pytest.raises(ValueError, match="holds no settings of this version"):
        LaplaceRecurrentPPO.load(tmp_path / "model.zip", weights_only=True)


def test_known_classes_are_what_they_should_be() -> None:
    assert encode(th.nn.ReLU) == {"class": "torch.nn.ReLU"}
    assert decode({"class": "sb3_laplace.cores.GRU"}).__mro__[1:].__contains__(Core)
    assert decode(encode(FloatSchedule(0.5)))(0.0) == 0.5
