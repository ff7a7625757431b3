from benchmarks.finetune import DIGITS, TEST_IMAGES, make_subset


def test_subsets_differ_in_training_images_only(tmp_path):
    for part, count in (("train", 90), ("test", TEST_IMAGES + 3)):
        for digit in range(10):
            folder = tmp_path / "all" / part / str(digit)
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index:03}.png").touch()
    names = []
    for seed in (1, 2):
        out = tmp_path / str(seed)
        make_subset(tmp_path / "all", out, 4, seed)
        names.append({path.relative_to(out) for path in out.glob("*/*/*") if path.exists()})
    tests = [{name for name in each if name.parts[0] == "test"} for each in names]
    assert tests[0] == tests[1]
    assert len(tests[0]) == TEST_IMAGES * len(DIGITS)
    assert [len(each) - len(tests[0]) for each in names] == [4 * len(DIGITS)] * 2
    assert names[0] != names[1]
