import fcntl
import functools
import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from protocaffe.errors import FileError
from protocaffe.zoo import fetch as module
from protocaffe.zoo.fetch import NotFetchedError, digest, fetch
from tests.zoo.conftest import good, head, reset, wanted


def sha1(data):
    return hashlib.sha1(data).hexdigest()


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def get(server, content, tmp_path):
    """Fetch ``/x``, which the server has, to the file ``x``."""
    server.files["/x"] = content
    return functools.partial(fetch, [f"{server.address}/x"], tmp_path / "x", sha1=sha1(content))


class TestFetch:
    def test_gets_the_file_and_says_where_from(self, get, server, content, tmp_path):
        seen = []
        found = get(progress=lambda done, total: seen.append((done, total)))
        assert found == f"{server.address}/x"
        assert (tmp_path / "x").read_bytes() == content
        assert files(tmp_path) == ["x"]
        assert seen[-1] == (len(content), len(content))

    def test_the_right_file_is_not_fetched_again(self, get, server, content, tmp_path):
        (tmp_path / "x").write_bytes(content)
        assert get() == ""
        assert get(force=True) == ""
        assert server.requests == []

    def test_another_file_stays_unless_forced(self, get, content, tmp_path):
        (tmp_path / "x").write_bytes(b"mine")
        with pytest.raises(FileError, match=r"sha1 is \w+, expected .* --force"):
            get()
        assert (tmp_path / "x").read_bytes() == b"mine"
        get(force=True)
        assert (tmp_path / "x").read_bytes() == content

    def test_another_file_stays_if_the_new_one_is_wrong(self, server, get, tmp_path):
        (tmp_path / "x").write_bytes(b"mine")
        server.files["/x"] = b"wrong"
        with pytest.raises(NotFetchedError):
            get(force=True)
        assert (tmp_path / "x").read_bytes() == b"mine"
        assert files(tmp_path) == ["x"]

    def test_without_a_digest_a_file_that_is_there_counts(self, get, server, content, tmp_path):
        (tmp_path / "x").write_bytes(b"mine")
        assert get(sha1="") == ""
        assert get(sha1="", force=True)
        assert (tmp_path / "x").read_bytes() == content

    @pytest.mark.parametrize("prefix", ["", "file://"])
    def test_local_files(self, content, tmp_path, prefix):
        (tmp_path / "a b").write_bytes(content)
        name = str(tmp_path / "a b").replace(" ", "%20" if prefix else " ")
        assert fetch([prefix + name], tmp_path / "x", sha1=sha1(content))
        assert (tmp_path / "x").read_bytes() == content


class TestBadConnections:
    def test_goes_on_where_a_connection_dropped(self, get, server, content, tmp_path):
        server.manners["/x"] = functools.partial(good, upto=60_000)
        get()
        assert (tmp_path / "x").read_bytes() == content
        starts = [f"bytes={start}-" for start in (60_000, 120_000, 180_000)]
        assert server.ranges("/x") == [None, *starts]

    def test_goes_on_where_an_earlier_call_stopped(self, get, server, content, tmp_path):
        def once(handler, content, times):
            good(handler, content, times, upto=70_000) if times == 1 else reset(handler, content, 0)

        server.manners["/x"] = once
        with pytest.raises(NotFetchedError, match=r"/x: "):
            get()
        assert files(tmp_path) == [".x.part"]
        server.manners.clear()
        get()
        assert server.ranges("/x")[-1] == "bytes=70000-"
        assert (tmp_path / "x").read_bytes() == content
        assert files(tmp_path) == ["x"]

    def test_a_complete_beginning_is_not_fetched_again(self, get, server, content, tmp_path):
        (tmp_path / ".x.part").write_bytes(content)
        get()
        assert (tmp_path / "x").read_bytes() == content
        assert files(tmp_path) == ["x"]

    @pytest.mark.parametrize("length", [1000, 300_000])
    def test_starts_anew_if_the_beginning_is_of_another_file(self, get, content, tmp_path, length):
        (tmp_path / ".x.part").write_bytes(b"z" * length)
        get()
        assert (tmp_path / "x").read_bytes() == content

    def test_a_server_that_knows_no_ranges_sends_everything_again(
        self, get, server, content, tmp_path
    ):
        def rangeless(handler, content, times):
            head(handler, 200, {"Content-Length": len(content)})
            handler.wfile.write(content[: 50_000 * times])

        server.manners["/x"] = rangeless
        get()
        assert (tmp_path / "x").read_bytes() == content
        assert len(server.requests) == 4

    def test_a_server_that_sends_another_range_is_asked_for_everything(
        self, get, server, content, tmp_path
    ):
        def elsewhere(handler, content, times):
            if not wanted(handler):
                return good(handler, content, times, upto=9 if times == 1 else None)
            headers = {"Content-Length": 5, "Content-Range": f"bytes 0-4/{len(content)}"}
            head(handler, 206, headers)
            return handler.wfile.write(content[:5])

        server.manners["/x"] = elsewhere
        get()
        assert (tmp_path / "x").read_bytes() == content

    def test_a_length_that_is_too_long_ends_the_attempts(self, get, server, content, tmp_path):
        def liar(handler, content, times):
            head(handler, 200, {"Content-Length": len(content) + 99})
            handler.wfile.write(content)

        server.manners["/x"] = liar
        with pytest.raises(NotFetchedError, match="ended after 200000 of 200099 bytes"):
            get()
        assert len(server.requests) == module.ATTEMPTS + 1

    def test_a_length_that_is_too_short_gives_a_wrong_file(self, get, server, content, tmp_path):
        def liar(handler, content, times):
            head(handler, 200, {"Content-Length": 99})
            handler.wfile.write(content)

        server.manners["/x"] = liar
        with pytest.raises(NotFetchedError, match="has another file"):
            get()
        assert files(tmp_path) == []

    def test_chunks_that_break_off(self, get, server, content, tmp_path):
        def chunked(handler, content, times):
            if times > 1:
                return good(handler, content, times)
            handler.protocol_version = "HTTP/1.1"
            head(handler, 200, {"Transfer-Encoding": "chunked", "ETag": '"1"'})
            return handler.wfile.write(b"%x\r\n" % 1000 + content[:1000] + b"\r\nffff\r\nabc")

        server.manners["/x"] = chunked
        get(sha1="")
        assert (tmp_path / "x").read_bytes() == content

    def test_a_file_that_changes_meanwhile_is_fetched_anew(self, get, server, content, tmp_path):
        def changing(handler, content, times):
            tag, upto = ('"1"', 1000) if times == 1 else ('"2"', None)
            good(handler, b"y" * 5000 if times == 1 else content, times, upto, tag)

        server.manners["/x"] = changing
        get(sha1="")
        assert (tmp_path / "x").read_bytes() == content

    def test_without_digest_and_version_nothing_is_pieced_together(
        self, get, server, content, tmp_path
    ):
        def nameless(handler, content, times):
            head(handler, 200, {"Content-Length": len(content)})
            handler.wfile.write(content[:1000] if times == 1 else content)

        server.manners["/x"] = nameless
        get(sha1="")
        assert server.ranges("/x") == [None, None]
        assert (tmp_path / "x").read_bytes() == content

    @pytest.mark.parametrize("status", [500, 503, 429])
    def test_a_busy_server_is_asked_again(self, get, server, content, tmp_path, status):
        def busy(handler, content, times):
            handler.send_error(status) if times < 3 else good(handler, content, times)

        server.manners["/x"] = busy
        get()
        assert (tmp_path / "x").read_bytes() == content

    def test_a_reset_before_the_answer(self, get, server, content, tmp_path):
        def first_reset(handler, content, times):
            (reset if times == 1 else good)(handler, content, times)

        server.manners["/x"] = first_reset
        get()
        assert (tmp_path / "x").read_bytes() == content

    def test_a_silent_server(self, get, server, monkeypatch, tmp_path):
        monkeypatch.setattr(module, "TIMEOUT", 0.05)
        monkeypatch.setattr(module, "ATTEMPTS", 2)

        def silent(handler, content, times):
            handler.rfile.read(1)

        server.manners["/x"] = silent
        with pytest.raises(NotFetchedError, match="no answer in time"):
            get()
        assert files(tmp_path) == []


class TestWrongAnswers:
    def test_a_wrong_file_leaves_nothing(self, get, server, tmp_path):
        server.files["/x"] = b"<!DOCTYPE html><html>log in first</html>"
        with pytest.raises(NotFetchedError, match=r"sha1 is .* \(it looks like a web page\)"):
            get()
        assert files(tmp_path) == []

    def test_a_file_that_the_check_refuses(self, get, server, tmp_path):
        def check(path):
            assert Path(path).read_bytes() == server.files["/x"]
            raise FileError("no model")

        with pytest.raises(NotFetchedError, match="has another file than expected"):
            get(sha1="", check=check)
        assert files(tmp_path) == []

    @pytest.mark.parametrize("code", [301, 302, 307, 308])
    def test_redirects_are_followed(self, get, server, content, tmp_path, code):
        server.files["/y"] = content
        server.manners["/x"] = lambda handler, *_: head(handler, code, {"Location": "/y"})
        get()
        assert (tmp_path / "x").read_bytes() == content

    @pytest.mark.parametrize("location", ["/x", "file:///etc/passwd"])
    def test_redirects_in_circles_and_to_files_are_refused(self, get, server, tmp_path, location):
        server.manners["/x"] = lambda handler, *_: head(handler, 302, {"Location": location})
        with pytest.raises(NotFetchedError, match="HTTP status 302"):
            get()
        assert files(tmp_path) == []

    def test_the_next_address_is_tried(self, get, server, content, tmp_path):
        server.files["/bad"] = b"another file"
        addresses = [f"{server.address}/{name}" for name in ("none", "bad", "x")]
        found = fetch(addresses, tmp_path / "x", sha1=sha1(content))
        assert found == addresses[-1]
        assert (tmp_path / "x").read_bytes() == content

    def test_all_addresses_are_named(self, server, tmp_path):
        addresses = [
            f"{server.address}/none",
            f"{tmp_path}/nowhere",
            "http://127.0.0.1:9/x",
            "http://no-such-host.invalid/x",
            "ftp://127.0.0.1/x",
            "http://[/x",
        ]
        with pytest.raises(NotFetchedError) as caught:
            fetch(addresses, tmp_path / "x")
        message = str(caught.value)
        assert all(address in message for address in addresses)
        assert "\n" not in message
        assert "HTTP status 404: Not Found" in message
        assert "Connection refused" in message
        assert "expected an address with" in message
        assert files(tmp_path) == []


class TestDisk:
    def test_a_full_disk_is_said_and_leaves_nothing(self, content, tmp_path):
        (tmp_path / "source").write_bytes(content)
        code = (
            "import sys; from protocaffe.zoo.fetch import fetch;"
            "from protocaffe.errors import FileError\n"
            "try: fetch([sys.argv[1]], sys.argv[2], sha1='0' * 40)\n"
            "except FileError as error: sys.exit(str(error))"
        )

        def small():
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "source", tmp_path / "x"],
            capture_output=True,
            text=True,
            preexec_fn=small,
        )
        assert done.returncode == 1
        assert done.stderr.strip() == f"{tmp_path / 'x'}: cannot be written: File too large"
        assert files(tmp_path) == ["source"]

    def test_a_folder_that_is_missing(self, get, tmp_path, content, server):
        with pytest.raises(FileError, match="cannot be written: No such file or directory"):
            fetch([f"{server.address}/x"], tmp_path / "no" / "x")

    def test_a_folder_in_its_place(self, tmp_path):
        with pytest.raises(FileError, match="got a folder"):
            fetch([], tmp_path)

    def test_two_at_once(self, get, tmp_path):
        with open(tmp_path / ".x.part", "wb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(FileError, match="another process is downloading it"):
                get()
        get()
        assert files(tmp_path) == ["x"]

    def test_digest_of_what_cannot_be_read(self, tmp_path):
        with pytest.raises(FileError, match="No such file"):
            digest(tmp_path / "none")


def test_proxies_are_used(server, content, tmp_path, monkeypatch):
    # A proxy is asked for the whole address.
    server.files["http://weights.example/x"] = content
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.setenv("no_proxy", "")
    fetch(["http://weights.example/x"], tmp_path / "x", sha1=sha1(content))
    assert (tmp_path / "x").read_bytes() == content
    assert os.listdir(tmp_path) == ["x"]
