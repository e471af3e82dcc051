"""Files are made by Pillow, OpenCV or by hand; what was put in must come out."""
import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from ppsr2q.core.errors import UserError
from ppsr2q.data.image_io import (
    Picture, image_size, list_images, read_picture, read_rgb8, write_picture, write_rgb8,
)


@pytest.fixture
def colour():
    return np.random.default_rng(0).integers(0, 256, (21, 34, 4), dtype=np.uint8)


@pytest.mark.parametrize("extension", [".png", ".bmp", ".tif", ".webp"])
def test_reads_rgb_of_other_writers(tmp_path, colour, extension):
    path = tmp_path / f"a{extension}"
    options = {"lossless": True} if extension == ".webp" else {}
    Image.fromarray(colour[..., :3]).save(path, **options)
    np.testing.assert_array_equal(read_rgb8(path), colour[..., :3])
    picture = read_picture(path)
    assert (picture.alpha, picture.gray, picture.depth) == (None, False, 8)
    np.testing.assert_array_equal(np.rint(picture.rgb * 255), colour[..., :3])
    assert picture.rgb.dtype == np.float32 and image_size(path) == (21, 34)


def test_jpeg_equals_opencv_decoder(tmp_path, colour):
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), colour[..., :3])
    np.testing.assert_array_equal(read_rgb8(path), cv2.imread(str(path))[..., ::-1])


@pytest.mark.parametrize("extension", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_survive(tmp_path, extension, channels):
    samples = np.random.default_rng(1).integers(0, 65536, (9, 12, channels), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / f"in{extension}"), samples[..., 0] if channels == 1 else samples)
    picture = read_picture(tmp_path / f"in{extension}")
    assert (picture.depth, picture.gray, picture.alpha is not None) == (16, channels == 1, channels == 4)
    expected = np.repeat(samples, 3, axis=2) if channels == 1 else samples[..., 2::-1]
    np.testing.assert_array_equal(np.rint(picture.rgb * 65535.0), expected)
    np.testing.assert_array_equal(read_rgb8(tmp_path / f"in{extension}"), np.rint(expected / 257.0))
    write_picture(tmp_path / f"out{extension}", picture)
    back = cv2.imread(str(tmp_path / f"out{extension}"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(back.reshape(samples.shape), samples)


def test_sixteen_bit_grey_with_alpha(tmp_path):
    alpha = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    rgb = np.repeat(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4, 1), 3, axis=2)
    write_picture(tmp_path / "a.png", Picture(rgb, alpha, gray=True, depth=16))
    back = read_picture(tmp_path / "a.png")
    assert back.depth == 16
    np.testing.assert_allclose(back.rgb, rgb, atol=1e-5)
    np.testing.assert_allclose(back.alpha, alpha, atol=1e-5)


@pytest.mark.parametrize("extension", [".png", ".tif", ".webp"])
def test_alpha_is_kept(tmp_path, colour, extension):
    path = tmp_path / f"a{extension}"
    colour[..., 3] |= 1  # WebP drops the colour of fully transparent pixels
    options = {"lossless": True} if extension == ".webp" else {}
    Image.fromarray(colour).save(path, **options)
    picture = read_picture(path)
    np.testing.assert_array_equal(np.rint(picture.alpha * 255), colour[..., 3])
    write_picture(tmp_path / f"b{extension}", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"b{extension}")), colour)
    np.testing.assert_array_equal(read_rgb8(path), colour[..., :3])


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_stays_grey(tmp_path, colour, mode):
    image = Image.fromarray(colour[..., 0]).convert(mode)
    image.save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture.gray and (picture.alpha is not None) == (mode == "LA")
    assert np.all(picture.rgb[..., 0] == picture.rgb[..., 2])
    write_picture(tmp_path / "b.png", picture)
    written = Image.open(tmp_path / "b.png")
    assert written.mode == ("LA" if mode == "LA" else "L")
    np.testing.assert_array_equal(np.asarray(written.convert("L")), np.asarray(image.convert("L")))


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=1)
    picture = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(np.rint(picture.rgb * 255), [[[10, 20, 30], [200, 100, 0]]])
    np.testing.assert_array_equal(picture.alpha, [[1, 0]])


def test_exif_orientation_is_applied(tmp_path, colour):
    image = Image.fromarray(colour[..., :3])
    exif = image.getexif()
    exif[0x0112] = 6  # rotate by 270 degrees counter-clockwise to show
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_rgb8(tmp_path / "a.png"), np.rot90(colour[..., :3], -1))


@pytest.mark.parametrize("extension", [".png", ".jpg", ".webp", ".bmp", ".tif"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow, on the way to refusing a TIFF
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.8])
def test_truncated_files_are_refused_by_name(tmp_path, extension, part):
    path = tmp_path / f"broken{extension}"
    smooth = np.add.outer(np.arange(80), np.arange(90)).astype(np.uint8)
    write_rgb8(path, np.stack([smooth, smooth.T[:80, :80].repeat(2, 1)[:, :90], smooth], 2))
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    for read in (read_picture, read_rgb8):
        with pytest.raises(UserError, match=f"broken{extension}"):
            read(path)


def test_truncated_sixteen_bit_png(tmp_path, capfd):
    path = tmp_path / "broken.png"
    cv2.imwrite(str(path), np.random.default_rng(1).integers(0, 65536, (64, 64, 3), dtype=np.uint16))
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(UserError, match="broken.png"):
        read_picture(path)


def test_other_content_is_refused_by_name(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    for name in ("text.png", "float.tif", "missing.png", ""):
        with pytest.raises(UserError, match=name or str(tmp_path)):
            read_picture(tmp_path / name)


def test_write_refusals_and_clipping(tmp_path):
    rgb = np.array([[[-1.0, 0.5, 2.0]]], np.float32)
    with pytest.raises(UserError, match="a.xyz"):
        write_picture(tmp_path / "a.xyz", Picture(rgb))
    with pytest.raises(UserError, match="transparency"):
        write_picture(tmp_path / "a.jpg", Picture(rgb, np.ones((1, 1), np.float32)))
    write_picture(tmp_path / "a.png", Picture(rgb))
    np.testing.assert_array_equal(read_rgb8(tmp_path / "a.png"), [[[0, 128, 255]]])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_what_a_format_cannot_hold_is_named(tmp_path):
    with pytest.raises(UserError, match="wide.webp: 16384 x 1 pixels cannot be written as WEBP"):
        write_picture(tmp_path / "wide.webp", Picture(np.zeros((1, 16384, 3), np.float32)))
    assert not list(tmp_path.iterdir())


def test_pictures_larger_than_a_band_of_rows_are_whole(tmp_path):
    samples = np.random.default_rng(3).integers(0, 256, (600, 3, 3), dtype=np.uint8)
    write_rgb8(tmp_path / "a.png", samples)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), samples)


@pytest.mark.parametrize("extension", [".png", ".webp", ".tif", ".jpg"])
def test_colour_profiles_survive(tmp_path, colour, extension):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(colour[..., :3]).save(tmp_path / f"a{extension}", icc_profile=profile)
    write_picture(tmp_path / "b.png", read_picture(tmp_path / f"a{extension}"))
    assert Image.open(tmp_path / "b.png").info["icc_profile"] == profile


def test_a_profile_of_other_colours_is_dropped_and_lab_is_not_transparent(tmp_path):
    Image.new("CMYK", (3, 2)).save(tmp_path / "a.jpg", icc_profile=b"of inks")
    assert read_picture(tmp_path / "a.jpg").profile is None
    Image.new("LAB", (3, 2)).save(tmp_path / "a.tif")
    assert read_picture(tmp_path / "a.tif").alpha is None


def test_large_texts_in_a_png_are_no_damage(tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("profile", "x" * 3_000_000, zip=True)
    Image.fromarray(np.full((4, 5, 3), 7, np.uint8)).save(tmp_path / "a.png", pnginfo=texts)
    assert image_size(tmp_path / "a.png") == (4, 5)
    np.testing.assert_array_equal(read_rgb8(tmp_path / "a.png"), np.full((4, 5, 3), 7))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 100)
        with pytest.raises(UserError, match="a.png: cannot read this image file"):
            image_size(tmp_path / "a.png")


def test_list_images(tmp_path):
    for name in ("b.PNG", "a.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG"]
    with pytest.raises(UserError, match="nowhere"):
        list_images(tmp_path / "nowhere")
