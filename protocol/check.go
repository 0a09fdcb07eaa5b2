package protocol

import "path"

// validName is what may become a file name, a container id and a hostname.
func validName(s string) bool {
	if len(s) == 0 || len(s) > 64 {
		return false
	}
	for i, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case (c == '-' || c == '_') && i > 0:
		default:
			return false
		}
	}
	return true
}

func cleanAbs(p string) bool { return len(p) <= 4096 && path.IsAbs(p) && path.Clean(p) == p }

// cut shortens s to at most MaxText bytes, for texts on their way out.
func cut(s string) string {
	if len(s) <= MaxText {
		return s
	}
	return s[:MaxText-3] + "..."
}
