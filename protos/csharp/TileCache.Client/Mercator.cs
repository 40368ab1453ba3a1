using System;
using System.Collections.Generic;

namespace TileCache.Client
{
    /// <summary>
    /// Web Mercator cells in XYZ order: the same cells as those of the daemon and of the Python client. Degrees are on
    /// WGS 84, lengths in metres. Keeps to C# 7, so that it can be compiled and tested wherever there is a C# compiler.
    /// </summary>
    internal static class Mercator
    {
        public const double EarthRadiusMeters = 6371008.8;

        /// <summary>The contract's <c>max_radius_meters</c>: half the way around the earth.</summary>
        public const double MaxRadiusMeters = 20015087;

        public const int MaxZoom = 22;

        // More than the rounding error of degrees at zoom 22, less than a pixel.
        private const double RoundingCells = 1e-6;

        private static readonly double MaxLatitude = Degrees(Math.Atan(Math.Sinh(Math.PI)));

        /// <summary>Adds the blocks of 32 x 32 cells that rectangles overlap.</summary>
        /// <returns>False, and not all of them, if there are more than <paramref name="most"/>.</returns>
        public static bool AddBlocks(int zoom, IEnumerable<CellRectangle> cells, HashSet<BlockKey> blocks, int most)
        {
            const int bits = BlockKey.Bits;
            foreach (CellRectangle part in cells)
            {
                for (int y = part.YFrom >> bits; y <= part.YTo >> bits; y++)
                {
                    for (int x = part.XFrom >> bits; x <= part.XTo >> bits; x++)
                    {
                        blocks.Add(new BlockKey(zoom, x, y));
                        if (blocks.Count > most)
                        {
                            return false;
                        }
                    }
                }
            }

            return true;
        }

        /// <summary>
        /// The cells that a box overlaps; sharing an edge is not overlapping. West is more than east across the
        /// antimeridian.
        /// </summary>
        public static IEnumerable<CellRectangle> CellsInBox(int zoom, double south, double west, double north, double east)
        {
            if (south > MaxLatitude || north < -MaxLatitude)
            {
                yield break;
            }

            (int yFrom, int yTo) = Span(RowPosition(zoom, north), RowPosition(zoom, south), zoom);
            foreach ((int From, int To) columns in Columns(zoom, west, east, west > east))
            {
                yield return new CellRectangle(columns.From, columns.To, yFrom, yTo);
            }
        }

        /// <summary>The cells that a circle on the ground overlaps, row by row from the north.</summary>
        public static IEnumerable<CellRectangle> CellsInCircle(
            int zoom, double latitude, double longitude, double radiusMeters)
        {
            double reach = Degrees(radiusMeters / EarthRadiusMeters);
            double south = Math.Max(latitude - reach, -90), north = Math.Min(latitude + reach, 90);
            if (south > MaxLatitude || north < -MaxLatitude)
            {
                yield break;
            }

            (int yFrom, int yTo) = Span(RowPosition(zoom, north), RowPosition(zoom, south), zoom);
            double widest = WidestLatitude(latitude, radiusMeters);
            double upper = Math.Min(Latitude(zoom, yFrom), north);
            for (int y = yFrom; y <= yTo; y++)
            {
                double lower = Math.Max(Latitude(zoom, y + 1), south);
                double width = Math.Max(
                    HalfWidth(latitude, radiusMeters, upper), HalfWidth(latitude, radiusMeters, lower));
                if (lower < widest && widest < upper)
                {
                    width = Math.Max(width, HalfWidth(latitude, radiusMeters, widest));
                }

                foreach ((int From, int To) columns in ColumnsAround(zoom, longitude, width))
                {
                    yield return new CellRectangle(columns.From, columns.To, y, y);
                }

                upper = lower;
            }
        }

        /// <summary>The distance on the sphere, by the haversine formula.</summary>
        public static double DistanceMeters(double latitude, double longitude, double toLatitude, double toLongitude)
        {
            double fromPhi = Radians(latitude), toPhi = Radians(toLatitude);
            double latitudeSine = Math.Sin((toPhi - fromPhi) / 2);
            double longitudeSine = Math.Sin(Radians(toLongitude - longitude) / 2);
            double chord = (latitudeSine * latitudeSine)
                + (Math.Cos(fromPhi) * Math.Cos(toPhi) * longitudeSine * longitudeSine);
            return 2 * EarthRadiusMeters * Math.Asin(Math.Min(Math.Sqrt(chord), 1));
        }

        /// <summary>A position after a short way.</summary>
        public static (double Latitude, double Longitude) Move(
            double latitude, double longitude, double northMeters, double eastMeters)
        {
            double toLatitude = latitude + Degrees(northMeters / EarthRadiusMeters);
            toLatitude = Math.Min(Math.Max(toLatitude, -89.9), 89.9);
            double circleMeters = EarthRadiusMeters * Math.Cos(Radians(toLatitude));
            double toLongitude = longitude + Degrees(eastMeters / circleMeters) + 180;
            return (toLatitude, toLongitude - (360 * Math.Floor(toLongitude / 360)) - 180);
        }

        /// <summary>The latitude at which a meridian touches a circle; the pole if the circle contains it.</summary>
        private static double WidestLatitude(double latitude, double radiusMeters)
        {
            double centre = Radians(latitude), cosine = Math.Cos(radiusMeters / EarthRadiusMeters);
            double ratio = cosine == 0 ? Math.Sign(centre) : Math.Sin(centre) / cosine;
            return Degrees(Math.Asin(Clamp(ratio)));
        }

        /// <summary>
        /// The difference of longitude, in degrees, between a circle's centre and its edge at a latitude within the
        /// circle's, by the spherical law of cosines.
        /// </summary>
        private static double HalfWidth(double latitude, double radiusMeters, double atLatitude)
        {
            double centre = Radians(latitude), at = Radians(atLatitude);
            double divisor = Math.Cos(centre) * Math.Cos(at);
            if (divisor < 1e-12)
            {
                return 180;
            }

            double cosine = Math.Cos(radiusMeters / EarthRadiusMeters);
            return Degrees(Math.Acos(Clamp((cosine - (Math.Sin(centre) * Math.Sin(at))) / divisor)));
        }

        private static List<(int From, int To)> ColumnsAround(int zoom, double longitude, double halfWidth)
        {
            if (halfWidth >= 180)
            {
                return new List<(int From, int To)> { (0, (1 << zoom) - 1) };
            }

            double west = longitude - halfWidth, east = longitude + halfWidth;
            bool crosses = west < -180 || east > 180;
            return Columns(zoom, west < -180 ? west + 360 : west, east > 180 ? east - 360 : east, crosses);
        }

        /// <summary>First and last column of the cells between two longitudes: two runs across the antimeridian.</summary>
        private static List<(int From, int To)> Columns(int zoom, double west, double east, bool crosses)
        {
            int side = 1 << zoom;
            if (!crosses)
            {
                return new List<(int From, int To)>
                {
                    Span(ColumnPosition(zoom, west), ColumnPosition(zoom, east), zoom),
                };
            }

            int first = Span(ColumnPosition(zoom, west), side, zoom).From;
            int last = Span(0, ColumnPosition(zoom, east), zoom).To;
            return first <= last
                ? new List<(int From, int To)> { (0, side - 1) }
                : new List<(int From, int To)> { (first, side - 1), (0, last) };
        }

        private static double Latitude(int zoom, int y)
        {
            return Degrees(Math.Atan(Math.Sinh(Math.PI * (1 - (2.0 * y / (1 << zoom))))));
        }

        private static double ColumnPosition(int zoom, double longitude)
        {
            return (longitude + 180) / 360 * (1 << zoom);
        }

        private static double RowPosition(int zoom, double latitude)
        {
            double tangent = Math.Tan(Radians(Math.Min(Math.Max(latitude, -MaxLatitude), MaxLatitude)));
            // The inverse hyperbolic sine of the tangent's amount; that of a negative one is its opposite.
            double arsinh = Math.Sign(tangent) * Math.Log(Math.Abs(tangent) + Math.Sqrt((tangent * tangent) + 1));
            return (1 - (arsinh / Math.PI)) / 2 * (1 << zoom);
        }

        /// <summary>The first and the last cell between two positions; at least one.</summary>
        private static (int From, int To) Span(double start, double end, int zoom)
        {
            int last = (1 << zoom) - 1;
            int from = (int)Math.Min(Math.Max(Math.Floor(start + RoundingCells), 0), last);
            return (from, (int)Math.Min(Math.Max(Math.Ceiling(end - RoundingCells) - 1, from), last));
        }

        private static double Clamp(double ratio)
        {
            return Math.Min(Math.Max(ratio, -1), 1);
        }

        private static double Radians(double degrees)
        {
            return degrees * (Math.PI / 180);
        }

        private static double Degrees(double radians)
        {
            return radians * (180 / Math.PI);
        }
    }
}
