package web

import (
	"fmt"

	"github.com/danielgtaylor/huma/v2"
)

// What an answer says of refused input. All that is wrong with 256 KB of it would
// be an answer of 70 MB.
const (
	maxDetails = 20
	maxText    = 200 // bytes of one value or message
)

func init() {
	whole := huma.NewError
	huma.NewError = func(status int, message string, causes ...error) huma.StatusError {
		told := make([]error, 0, min(len(causes), maxDetails+1))
		for _, err := range causes[:min(len(causes), maxDetails)] {
			if detail, ok := err.(huma.ErrorDetailer); ok {
				err = brief(detail.ErrorDetail())
			}
			told = append(told, err)
		}
		if more := len(causes) - len(told); more > 0 {
			told = append(told, &huma.ErrorDetail{Message: fmt.Sprintf("and %d more", more)})
		}
		return whole(status, message, told...)
	}
}

// brief keeps of a detail what a person reads: no object, no long text.
func brief(d *huma.ErrorDetail) *huma.ErrorDetail {
	short := &huma.ErrorDetail{Message: cutText(d.Message), Location: cutText(d.Location)}
	switch v := d.Value.(type) {
	case string:
		short.Value = cutText(v)
	case bool, float64, int64, int:
		short.Value = v
	}
	return short
}

func cutText(s string) string {
	if len(s) > maxText {
		return s[:maxText] + "…"
	}
	return s
}
