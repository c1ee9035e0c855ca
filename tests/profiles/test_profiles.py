import pytest

from latentc.core.errors import ProfileError
from latentc.profiles import load_profile, profile_names
from latentc.runtimes import runtime

HEAD = 'title = "x"\nruntime = "openvino"\n'


def own(tmp_path, text):
    path = tmp_path / "own.toml"
    path.write_text(text)
    return load_profile(str(path))


def test_every_shipped_profile_loads():
    assert {"cpu-openvino", "cpu-openvino-f32", "cpu-onnxruntime", "torch-f32"} <= set(profile_names())
    for name in profile_names():
        assert load_profile(name).name == name


def test_precision_is_a_list_of_wishes_by_part(tmp_path):
    profile = own(tmp_path, HEAD + '[precision]\ndefault = ["bf16", "f32"]\nvae_decoder = "f32"\n')
    assert profile.wishes("unet", "denoiser") == ("bf16", "f32")
    assert profile.wishes("vae_decoder", "decoder") == ("f32",)
    by_role = '[precision]\ndefault = "f16"\ntext_encoder = "f32"\ndecoder = "f32"\nvae_decoder = "bf16"\n'
    profile = own(tmp_path, HEAD + by_role)
    assert profile.wishes("text_encoder_2", "text_encoder") == ("f32",)
    assert profile.wishes("vae_decoder", "decoder") == ("bf16",), "the part's own goes first"
    assert profile.wishes("vae_encoder", "encoder") == ("f16",)
    assert own(tmp_path, HEAD + 'precision = "f16"\n').wishes("unet", "denoiser") == ("f16",)


def test_a_variant_has_the_precision_of_its_part_unless_it_has_its_own(tmp_path):
    wishes = 'denoiser = "bf16"\nunet = "f16"\n"unet@deep" = "f32"\n'
    profile = own(tmp_path, f"{HEAD}[precision]\n{wishes}")
    found = [profile.wishes(part, "denoiser") for part in ("unet", "unet@shallow", "unet@deep", "other@shallow")]
    assert found == [("f16",), ("f16",), ("f32",), ("bf16",)]


def test_floors_that_are_not_given_are_filled_in(tmp_path):
    assert own(tmp_path, HEAD + "[parity_db]\nbf16 = 42\n").parity_db == {
        "f32": 90.0,
        "tf32": 50.0,
        "f16": 40.0,
        "bf16": 42.0,
        "w8": 30.0,
        "int8": 33.0,
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (HEAD + "devise = 'GPU'\n", "unknown key 'devise': did you mean 'device'"),
        (HEAD + "[shapes]\nsize = ['512x512']\n", "did you mean 'sizes'"),
        (HEAD + "[shapes]\nsizes = ['512x500']\n", "multiple of 8"),
        (HEAD + "[shapes]\nsizes = ['512']\n", "shapes.sizes.0"),
        (
            HEAD + "precision = 'fp16'\n",
            "default.0: 'fp16' is not a known precision. Did you mean 'f16'. Known: bf16, f16, f32, int8, tf32, w8",
        ),
        (
            HEAD + "[precision]\nunet = ['bf16', 'float32']\n",
            "unet.1: 'float32' is not a known precision. Did you mean 'f32'",
        ),
        (HEAD + "[parity_db]\nbfloat16 = 30\n", "'bfloat16' is not a known precision. Did you mean 'bf16'"),
        (HEAD + "[precision]\nunet = [16]\n", "'f32', 'tf32', 'bf16', 'f16', 'w8' or 'int8'"),
        (HEAD + "opset = 17\n", "opset"),
        (HEAD + "precision = []\n", "at least 1 item"),
        (HEAD + 'name = "x"\n', "unknown key 'name'"),
        ("runtime = 'openvino'\n", "title: field required"),
        ("title = ", "is not valid TOML"),
    ],
)
def test_a_bad_profile_says_what_is_wrong(tmp_path, text, says):
    with pytest.raises(ProfileError, match=says):
        own(tmp_path, text)


def test_a_wrong_entry_of_a_list_is_not_reported_as_a_short_list_too(tmp_path):
    with pytest.raises(ProfileError, match=r"'fp16' is not a known precision\. .*w8\.?$"):
        own(tmp_path, HEAD + "precision = 'fp16'\n")


@pytest.mark.parametrize("name", ["tensorflow", "../cpu-openvino", ""])
def test_an_unknown_profile_is_refused(name):
    with pytest.raises(ProfileError, match="is not a known profile.*`latentc profiles` lists all of them"):
        load_profile(name)


def test_a_file_that_is_not_there_is_no_unknown_name():
    with pytest.raises(ProfileError, match="./mine.toml was not found. Check the path"):
        load_profile("./mine.toml")


def test_a_profile_knows_what_it_is_asked_for_by(tmp_path):
    assert load_profile("null").argument == "null"
    mine = tmp_path / "mine.toml"
    mine.write_text('title = "Mine"\nruntime = "null"\n')
    assert load_profile(str(mine)).argument == str(mine)
    spaced = mine.rename(tmp_path / "mine too.toml")
    assert load_profile(str(spaced)).argument == f"'{spaced}'", "as a shell takes it"
    assert load_profile(str(spaced)).model_copy(update={"opset": 18}).argument == f"'{spaced}'"


def test_options_by_part_and_role_take_precedence(tmp_path):
    profile = own(
        tmp_path,
        HEAD
        + """
        [options]
        threads = 4
        graph = true
        [part_options.text_encoder]
        graph = false
        level = 1
        [part_options.text_encoder_2]
        level = 2
        [part_options.unet]
        level = 3
        """,
    )
    assert profile.options_for("vae_decoder", "decoder") == {"threads": 4, "graph": True}
    assert profile.options_for("text_encoder", "text_encoder") == {"threads": 4, "graph": False, "level": 1}
    assert profile.options_for("text_encoder_2", "text_encoder") == {"threads": 4, "graph": False, "level": 2}
    assert profile.options_for("unet@shallow", "denoiser") == {"threads": 4, "graph": True, "level": 3}
    forced = profile.with_options({"level": 5})
    assert forced.options_for("unet", "denoiser")["level"] == forced.options_for("vae", "decoder")["level"] == 5
    assert forced.options_for("text_encoder", "text_encoder")["graph"] is False


def test_a_slip_of_the_pen_is_suggested():
    with pytest.raises(ProfileError, match="Did you mean 'cpu-openvino'"):
        load_profile("cpu-openvin")


def test_shipped_profiles_ask_for_what_their_runtimes_can():
    for profile in map(load_profile, profile_names()):
        adapter = runtime(profile.runtime)
        if adapter.unbuildable(profile.device) is None:
            adapter.check(profile.options, profile.device)
            assert profile.opset <= adapter.facts.newest_opset or not adapter.facts.reads_onnx, profile.name
            for wishes in profile.precision.values():
                assert set(wishes) & set(adapter.precisions(profile.device)), profile.name


def test_decoders_are_in_f16_only_where_there_is_nothing_else():
    """An overflow may come with other pictures than those of the proof; docs/targets.md has the reasons."""
    wishes = {name: load_profile(name).wishes("vae_decoder", "decoder") for name in profile_names()}
    in_f16 = {name for name, each in wishes.items() if "f16" in each}
    assert in_f16 == {"rtx-2060", "rtx-2080", "intel-npu", "snapdragon-x-elite"}
    in_tf32 = {name for name, each in wishes.items() if "tf32" in each}
    assert in_tf32 == {"a100", "h100", "h100-tensorrt", "h100-onnxruntime-tensorrt"}
    assert all(wishes[name] == ("tf32", "f32") for name in in_tf32), "f32 where TF32 is below its floor"


def test_the_jetsons_attention_is_fused():
    """Its memory is too small for the scores, which are a tensor of their own at opset 18."""
    assert load_profile("jetson-orin").opset == 23
