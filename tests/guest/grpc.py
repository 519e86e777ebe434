"""Calls a method of a gRPC service on a unix socket: an HTTP/2 client (curl) and messages encoded here, from the service's .proto.

    grpc.py PROTO SOCKET Service/Method JSON

JSON has the message's fields under their names, enumerators by their names. Prints the answer as JSON; where the call failed, its code and
message on stderr, with exit code 1.
"""

import json
import re
import struct
import subprocess
import sys
import tempfile
import urllib.parse


class Schema:
    """What a .proto says: fields of messages, enumerators, methods."""

    def __init__(self, path):
        self.messages, self.enums, self.methods = {}, {}, {}
        text = re.sub(r"//[^\n]*", "", open(path).read())
        self.package = re.search(r"package\s+([\w.]+)", text)[1]
        scope, kinds = [], []
        for token in re.finditer(r"(message|enum|service|oneof)\s+(\w+)\s*\{|\}|([^{};]+);", text):
            kind, name, statement = token.groups()
            if kind:
                # The fields of a oneof are its message's.
                scope.append(None if kind == "oneof" else name)
                kinds.append(kind)
                if kind == "message":
                    self.messages[self.full(scope)] = {}
                elif kind == "enum":
                    self.enums[self.full(scope)] = {}
            elif not statement:
                scope.pop()
                kinds.pop()
            elif kinds:
                self.state(statement.strip(), scope, kinds[-1])

    @staticmethod
    def full(scope):
        return ".".join(name for name in scope if name)

    def state(self, statement, scope, kind):
        if kind == "service":
            method = re.match(r"rpc\s+(\w+)\s*\(\s*(\w+)\s*\)\s*returns\s*\(\s*(\w+)\s*\)", statement)
            self.methods[f"{scope[-1]}/{method[1]}"] = (method[2], method[3])
        elif kind == "enum" and (value := re.match(r"(\w+)\s*=\s*(\d+)", statement)):
            self.enums[self.full(scope)][value[1]] = int(value[2])
        elif field := re.match(r"(repeated\s+|optional\s+)?(map\s*<\s*\w+\s*,\s*\w+\s*>|[\w.]+)\s+(\w+)\s*=\s*(\d+)", statement):
            label, type_, name, number = field.groups()
            message = self.full(scope)
            if type_.startswith("map"):
                key, value = re.findall(r"\w+", type_)[1:]
                entry = f"{message}.{name}"
                self.messages[entry] = {"key": (1, key, False, message), "value": (2, value, False, message)}
                self.messages[message][name] = (int(number), entry, "map", message)
            else:
                self.messages[message][name] = (int(number), type_, (label or "").strip() == "repeated", message)

    def find(self, type_, scope, among):
        """The full name of a type as seen from a scope; None where there is no such type."""
        parts = scope.split(".")
        for length in range(len(parts), -1, -1):
            if (name := ".".join(parts[:length] + [type_])) in among:
                return name
        return None


def varint(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))


def encode(schema, message, value):
    out = b""
    for name, given in value.items():
        number, type_, label, scope = schema.messages[message][name]
        if label == "map":
            given = [{"key": key, "value": item} for key, item in given.items()]
        for item in given if label else [given]:
            if (enum := schema.find(type_, scope, schema.enums)) is not None:
                out += varint(number << 3) + varint(schema.enums[enum][item])
            elif (inner := schema.find(type_, scope, schema.messages)) is not None:
                data = encode(schema, inner, item)
                out += varint(number << 3 | 2) + varint(len(data)) + data
            elif type_ in ("string", "bytes"):
                data = item.encode()
                out += varint(number << 3 | 2) + varint(len(data)) + data
            else:
                out += varint(number << 3) + varint(int(item))
    return out


def take_varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at


def decode(schema, message, data):
    names = {field[0]: (name, *field[1:]) for name, field in schema.messages[message].items()}
    value, at = {}, 0
    while at < len(data):
        key, at = take_varint(data, at)
        if key & 7 == 2:
            length, at = take_varint(data, at)
            raw, at = data[at : at + length], at + length
        elif key & 7 == 0:
            raw, at = take_varint(data, at)
        else:
            sys.exit(f"{message} has a field of wire type {key & 7}")
        if key >> 3 not in names:
            continue
        name, type_, label, scope = names[key >> 3]
        if isinstance(raw, bytes):
            inner = schema.find(type_, scope, schema.messages)
            raw = decode(schema, inner, raw) if inner else raw.decode()
        if label == "map":
            value.setdefault(name, {})[raw.get("key", "")] = raw.get("value", "")
        elif label:
            value.setdefault(name, []).append(raw)
        else:
            value[name] = raw
    return value


def main(proto, socket, method, request):
    schema = Schema(proto)
    asks, answers = schema.methods[method]
    data = encode(schema, asks, json.loads(request))
    with tempfile.NamedTemporaryFile() as headers:
        curl = ["curl", "--silent", "--show-error", "--http2-prior-knowledge", "--unix-socket", socket, "--max-time", "120"]
        curl += ["--dump-header", headers.name, "--header", "content-type: application/grpc", "--header", "te: trailers"]
        curl += ["--data-binary", "@-", f"http://localhost/{schema.package}.{method}"]
        ended = subprocess.run(curl, input=b"\0" + struct.pack(">I", len(data)) + data, stdout=subprocess.PIPE)
        if ended.returncode != 0:
            sys.exit(f"{method}: curl ended with {ended.returncode}")
        # Trailers come at the end of them.
        said = dict(re.findall(r"^(grpc-\w+): *(.*?)\r?$", open(headers.name).read(), re.M))
    if said.get("grpc-status") != "0":
        sys.exit(f"{method}: code {said.get('grpc-status')}: {urllib.parse.unquote(said.get('grpc-message', ''))}")
    print(json.dumps(decode(schema, answers, ended.stdout[5:])))


main(*sys.argv[1:])
